"""DPDK's testpmd as a virtual machine: a virtio-net driver in user space, over vhost-user."""
import os
import re
import select
import subprocess
import tempfile
import time

from net import die_with_parent


class Testpmd:
    """One process with one virtio-user port, and more ports if asked for. Driven over its console."""

    def __init__(self, vdevs, queues=1, ip=None, peer=None, cpu='0', more=(), descriptors=1024,
                 small=False):
        self.runtime = tempfile.TemporaryDirectory(prefix='dpdk-')
        words = ['stdbuf', '-oL', 'dpdk-testpmd', '--lcores', f'0@{cpu},1@{cpu}', '--no-huge', '-m', '512', '--no-pci',
                 '--file-prefix', f'v{os.getpid()}-{id(self)}', '--no-telemetry']
        for vdev in vdevs:
            words += ['--vdev', vdev]
        words += ['--', '-i', '--total-num-mbufs=16384',
                  f'--txd={descriptors}', f'--rxd={descriptors}', f'--rxq={queues}', f'--txq={queues}',
                  '--no-lsc-interrupt', '--no-mlockall', '--no-flush-rx', *more]
        # Buffers for the longest frames cost rate.
        words += [] if small else ['--mbuf-size=9728', '--max-pkt-len=9100']
        if ip:
            words.append(f'--tx-ip={ip[0]},{ip[1]}')
        if peer:
            words.append(f'--eth-peer=0,{peer}')
        environment = dict(os.environ, XDG_RUNTIME_DIR=self.runtime.name, RUNTIME_DIRECTORY=self.runtime.name)
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=environment,
                                        preexec_fn=die_with_parent)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = ''
        try:
            self.wait('testpmd> ', 60)
        except BaseException:
            self.close()
            raise

    def wait(self, mark, timeout):
        """Reads until `mark`; returns what came before it."""
        end = time.time() + timeout
        while mark not in self.text:
            if time.time() > end:
                raise TimeoutError(f'testpmd does not say {mark!r}: ...{self.text[-1500:]}')
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                chunk = self.process.stdout.read()
                if chunk == b'':
                    raise EOFError(f'testpmd ended: ...{self.text[-1500:]}')
                self.text += (chunk or b'').decode(errors='replace')
        before, _, self.text = self.text.partition(mark)
        return before

    def say(self, command, timeout=30):
        self.process.stdin.write((command + '\n').encode())
        self.process.stdin.flush()
        return self.wait('testpmd> ', timeout)

    def counts(self, port=0):
        """Packets received and sent."""
        text = self.say(f'show port stats {port}')
        return tuple(int(re.search(rf'{word}-packets:\s*(\d+)', text)[1]) for word in ('RX', 'TX'))

    def close(self):
        if self.process.poll() is None:
            try:
                self.process.stdin.write(b'quit\n')
                self.process.stdin.flush()
                self.process.wait(10)
            except Exception:
                pass
            self.process.kill()
            self.process.wait()
        self.runtime.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
