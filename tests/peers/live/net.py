"""Network namespaces, vesperd in them, and a sniffer on their links."""
import ctypes
import json
import os
import re
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TARGET = Path(os.environ.get('CARGO_TARGET_DIR', ROOT / 'target'))
HOST_MAC = '02:00:00:00:0a:00'
PEER_HOST_MAC = '02:00:00:00:0b:00'
# Bytes of a frame that the sniffer keeps: its headers tell what it is.
SEEN = 128


def vesperd_path():
    return os.environ.get('VESPERD', str(TARGET / 'release' / 'vesperd'))


def run(*words, check=True, timeout=60, **more):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=timeout, **more)
    if check and done.returncode:
        raise RuntimeError(f'{" ".join(map(str, words))}: exit {done.returncode}\n{done.stdout}')
    return done.stdout


def die_with_parent():
    """For a child, before its program begins: no program outlives a run that was killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def sweep():
    """Removes the namespaces of runs that were killed."""
    for name, process in re.findall(r'^(vesper-(\d+)-\d+)', run('ip', 'netns', 'list'), re.MULTILINE):
        if not os.path.exists(f'/proc/{process}'):
            run('ip', 'netns', 'del', name, check=False)


class Namespace:
    """A network namespace of this run, gone with it."""

    count = 0

    def __init__(self):
        Namespace.count += 1
        self.name = f'vesper-{os.getpid()}-{Namespace.count}'
        run('ip', 'netns', 'add', self.name)
        self.prefix = ['ip', 'netns', 'exec', self.name]
        self('sysctl', '-qw', 'net.ipv6.conf.default.accept_dad=0',
             'net.ipv6.conf.default.router_solicitations=0')
        self('ip', 'link', 'set', 'lo', 'up')

    def __call__(self, *words, **more):
        return run(*self.prefix, *words, **more)

    def batch(self, text):
        return run(*self.prefix, 'ip', '-batch', '-', input=text)

    def start(self, *words, **more):
        return subprocess.Popen(self.prefix + [str(word) for word in words], preexec_fn=die_with_parent, **more)

    def ping(self, to, *more, count=3):
        """How many of so many pings are answered.

        One after the other: of several, `ping` waits for the last one but twice as long as for
        those before, which an emulated peer on a busy machine does not keep.
        """
        ping = ['ping', '-n', '-q', '-c', '1', '-W', '10', *more, to]
        return sum(' 1 received' in self(*ping, check=False) for _ in range(count))

    def close(self):
        run('ip', 'netns', 'del', self.name, check=False)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Vesperd:
    """vesperd with a configuration, in a namespace."""

    def __init__(self, namespace, text, ready=None, cpu=None):
        self.directory = tempfile.TemporaryDirectory(prefix='vesperd-')
        path = Path(self.directory.name) / 'vesper.toml'
        path.write_text(text)
        path.chmod(0o600)
        self.log = open(Path(self.directory.name) / 'log', 'w+')
        prefix = namespace.prefix if namespace else []
        prefix = prefix + (['taskset', '-c', cpu] if cpu else [])
        self.process = subprocess.Popen([*prefix, vesperd_path(), '--config', str(path), '--quiet'],
                                        stdout=self.log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        end = time.time() + 20
        while ready and not ready():
            if self.process.poll() is not None or time.time() > end:
                raise RuntimeError(f'vesperd did not start:\n{self.output()}')
            time.sleep(0.01)

    def output(self):
        self.log.flush()
        return Path(self.log.name).read_text()

    def stop(self, kind=signal.SIGINT):
        """Ends it; returns what it has said."""
        if self.process.poll() is None:
            self.process.send_signal(kind)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise RuntimeError(f'vesperd did not end:\n{self.output()}')
        return self.output()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.directory.cleanup()


class Sniffer:
    """tcpdump on interfaces: an observer that shares nothing with us.

    It sees what an interface receives; what leaves through a packet socket goes past it. So it
    has to listen at both ends of a link.
    """

    def __init__(self, *places):
        self.captures, self.processes = [], []
        for namespace, interface in places:
            handle, path = tempfile.mkstemp(suffix='.pcap')
            os.close(handle)
            self.captures.append(path)
            self.processes.append(namespace.start(
                'tcpdump', '-i', interface, '-Q', 'in', '-U', '--immediate-mode', '-s', str(SEEN), '-w', path,
                '-B', '16384', '-Z', 'root',
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        end = time.time() + 10
        while any(os.path.getsize(path) < 24 for path in self.captures):
            if time.time() > end:
                raise RuntimeError('tcpdump does not start')
            time.sleep(0.02)

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGINT)
            process.wait(10)

    def kinds(self):
        """How many frames there are of each kind."""
        return kinds(*self.captures)

    def encapsulated(self):
        """How many packets in UDP there are of each SPI; of IKE, 0."""
        counts = {}
        for frame in (frame for path in self.captures for frame in frames(path)):
            if kind(frame) == 'esp-udp':
                at = 14 + (frame[14] & 15) * 4 + 8
                spi = int.from_bytes(frame[at:at + 4], 'big')
                counts[spi] = counts.get(spi, 0) + 1
        return counts

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for path in self.captures:
            os.unlink(path)


def kinds(*captures, but_from=''):
    """Counts frames by a naive reading of capture files, but those of one sender."""
    counts, source = {}, bytes.fromhex(but_from.replace(':', ''))
    for path in captures:
        for frame in frames(path):
            if frame[6:12] == source:
                continue
            what = kind(frame)
            counts[what] = counts.get(what, 0) + 1
    return counts


def frames(capture):
    """The frames of a capture file, as far as they were kept."""
    data, at = Path(capture).read_bytes(), 24
    while at + 16 <= len(data):
        length = struct.unpack_from('<I', data, at + 8)[0]
        yield data[at + 16:at + 16 + length]
        at += 16 + length


def kind(frame):
    """esp, esp-udp, arp, ndp, or clear: everything that a tunnel should hide."""
    ethertype = frame[12:14]
    if ethertype == b'\x08\x06':
        return 'arp'
    if ethertype == b'\x08\x00':
        protocol, rest = frame[23], frame[14 + (frame[14] & 15) * 4:]
    elif ethertype == b'\x86\xdd':
        protocol, rest = frame[20], frame[54:]
    else:
        return 'other'
    if protocol == 50:
        return 'esp'
    if protocol == 17 and 4500 in (int.from_bytes(rest[:2], 'big'), int.from_bytes(rest[2:4], 'big')):
        return 'esp-udp'
    # Neighbours, routers and group membership of the link itself.
    if protocol == 58 and rest and rest[0] in (130, 131, 132, 133, 134, 135, 136, 143):
        return 'ndp'
    if protocol == 0:
        return 'ndp'
    return 'clear'


def toml(value):
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return '{ ' + ', '.join(f'{key} = {toml(item)}' for key, item in value.items()) + ' }'
    return json.dumps(value)


def host(name, address, mac, uplink, vms, gateway=None, **more):
    """A `[[host]]` of the configuration; vms are dictionaries."""
    tunnel = {'address': address, 'mac': mac}
    if gateway:
        tunnel['gateway'] = gateway
    lines = ['[[host]]', f'name = "{name}"', f'uplink = {toml(uplink)}',
             f'tunnel = {toml(tunnel)}']
    lines += [f'{key} = {toml(value)}' for key, value in more.items()]
    for vm in vms:
        lines += ['[[host.vm]]'] + [f'{key} = {toml(value)}' for key, value in vm.items()]
    return '\n'.join(lines) + '\n'
