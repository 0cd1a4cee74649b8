"""What docs/two-hosts.md and docs/ports.md say, done to the letter.

    QEMU ── vhost-user ── vesperd ── veth ── vesperd ── vhost-user ── QEMU

The files, the commands and the examples are taken out of the pages. Each host is a network namespace
with an /etc/vesper and a /run/vesper of its own.
"""
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from guest import Guest
from net import ROOT, Namespace, Sniffer, die_with_parent, kinds, run as run_command, vesperd_path
from part_qemu import ping, transfer

PLACES = ('/etc/vesper', '/run/vesper')
INNER = ('10.0.1.1', '10.0.1.2')


def blocks(page):
    """Language and text of each block of code of a page."""
    return re.findall(r'^```(\w*)\n(.*?)^```$', (ROOT / 'docs' / page).read_text(), re.MULTILINE | re.DOTALL)


def exchanged(text, one, other):
    return text.replace(one, '\0').replace(other, one).replace('\0', other)


class Guide:
    """The blocks of the page about two hosts, with keys in them."""

    def __init__(self):
        (_, self.toml), (_, states), (_, start), (_, qemu), (_, linux) = blocks('two-hosts.md')
        for number in (1, 2):
            key = run_command('openssl', 'rand', '-hex', '36').strip()
            states, linux = (text.replace(f'<key {number}>', key) for text in (states, linux))
        self.states, self.linux = states, linux
        self.start, self.qemu = start.splitlines(), qemu

    def files(self, side):
        """vesper.toml and web1.sa of a host."""
        if side == 0:
            return self.toml, self.states
        toml = exchanged(self.toml, '192.0.2.1', '192.0.2.2').replace('name = "a"', 'name = "b"')
        toml = toml.replace('02:00:00:00:0a:00', '02:00:00:00:0b:00').replace('52:54:00:00:00:01', '52:54:00:00:00:02')
        return toml, exchanged(self.states, 'dir out', 'dir in')


class Host:
    """A namespace with directories of its own in place of /etc/vesper and /run/vesper."""

    def __init__(self, directory, side):
        self.namespace = Namespace()
        self.directories = [Path(directory) / f'{side}-{name}' for name in ('etc', 'run')]
        for made in self.directories:
            made.mkdir()
        # `ip netns exec` gives each command a mount namespace of its own.
        bind = ' && '.join(f'mount --bind {here} {there}' for here, there in zip(self.directories, PLACES))
        self.prefix = [*self.namespace.prefix, 'sh', '-c', f'{bind} && exec "$@"', 'sh']
        self.path = f'{Path(vesperd_path()).parent}:{os.environ["PATH"]}'
        self.daemon = None

    def write(self, toml, states):
        (self.directories[0] / 'vesper.toml').write_text(toml)
        (self.directories[0] / 'web1.sa').touch(0o600)
        (self.directories[0] / 'web1.sa').write_text(states)

    def run(self, line):
        return run_command(*self.prefix, *shlex.split(line), env=dict(os.environ, PATH=self.path))

    def begin(self, line, log):
        self.daemon = subprocess.Popen([*self.prefix, *shlex.split(line)], stdin=-3, stdout=log, stderr=log,
                                       env=dict(os.environ, PATH=self.path), preexec_fn=die_with_parent)
        end = time.time() + 20
        while not (self.directories[1] / 'web1.sock').exists():
            if self.daemon.poll() is not None or time.time() > end:
                raise RuntimeError(f'{line} did not start')
            time.sleep(0.02)

    def machine(self, work, qemu, side):
        """A QEMU with the words of the page; the last one, dots, stands for what to boot from."""
        words = shlex.split(qemu.replace('52:54:00:00:00:01', f'52:54:00:00:00:0{side + 1}').replace('\\\n', ' '))
        words = [word for word in words if word != '...']
        # Emulated, this version crashes with MSI-X.
        at = words.index('-device') + 1
        words[at] += ',vectors=0,romfile='
        guest = Guest(work, command=[*self.prefix, *words])
        guest.sh(f'ip addr add {INNER[side]}/24 dev eth0', check=True)
        return guest

    def close(self):
        if self.daemon and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGINT)
            try:
                self.daemon.wait(15)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        self.namespace.close()


def two_hosts(report, work, directory, guide, quick):
    """Both hosts are what the page says; the second machine is started as docs/ports.md says."""
    hosts, guests, sniffer = [Host(directory, side) for side in (0, 1)], [], None
    log = open(Path(directory) / 'log', 'w+')
    try:
        hosts[0].namespace('ip', 'link', 'add', 'eth1', 'type', 'veth', 'peer', 'name', 'eth1', 'netns',
                           hosts[1].namespace.name)
        for side, host in enumerate(hosts):
            host.write(*guide.files(side))
            for line in guide.start[:-1]:
                host.run(line)
            host.begin(guide.start[-1], log)
        other = next(text for _, text in blocks('ports.md') if text.startswith('qemu-system')).replace(' ...', '')
        sniffer = Sniffer(*((host.namespace, 'eth1') for host in hosts))
        for side, qemu in enumerate((guide.qemu, other)):
            guests.append(hosts[side].machine(work, qemu, side))
        for side in (0, 1):
            good, out = ping(guests[side], INNER[1 - side], size=(56, 1372)[side])
            report.check(good, f'ping from {"ab"[side]}: {out}\n{Path(log.name).read_text()}')
        transfer(report, guests, 2 if quick else 20)
        time.sleep(0.2)
        sniffer.stop()
        seen = sniffer.kinds()
        report.check(seen.get('esp', 0) > 12 and set(seen) <= {'esp', 'arp', 'ndp'}, f'on the wire: {seen}')
        report.note(f'two hosts as docs/two-hosts.md has them: wire: {seen}')
    finally:
        for guest in guests:
            guest.close()
        if sniffer:
            sniffer.close()
        for host in hosts:
            host.close()
        log.close()


def kernel_in_place(report, work, directory, guide):
    """The last section of the page: Linux in place of host b."""
    host = Host(directory, 'c')
    guests = []
    with tempfile.NamedTemporaryFile(suffix='.pcap') as capture, open(Path(directory) / 'log-c', 'w+') as log:
        try:
            host.namespace('ip', 'tuntap', 'add', 'eth1', 'mode', 'tap')
            host.namespace('sysctl', '-qw', 'net.ipv6.conf.eth1.disable_ipv6=1')
            host.write(*guide.files(0))
            for line in guide.start[:-1]:
                host.run(line)
            host.begin(guide.start[-1], log)
            far = Guest(work, netns=host.namespace.name, tap='eth1', dump=capture.name)
            guests.append(far)
            far.sh(guide.linux.replace('eth1', 'eth0'), check=True)
            near = host.machine(work, guide.qemu, 0)
            guests.append(near)
            for guest, to in ((near, INNER[1]), (far, INNER[0])):
                good, out = ping(guest, to)
                report.check(good, f'Linux in place of host b, ping to {to}: {out}\n{far.xfrm_stat()}\n'
                                   f'{Path(log.name).read_text()}')
            seen = kinds(capture.name)
            report.check(seen.get('esp', 0) >= 12 and set(seen) <= {'esp', 'arp', 'ndp'}, f'to Linux: {seen}')
        finally:
            for guest in guests:
                guest.close()
            host.close()


def examples(report, directory):
    """Every piece of configuration of docs/ports.md starts."""
    host = Host(directory, 'd')
    try:
        host.namespace('ip', 'link', 'add', 'eth1', 'type', 'veth', 'peer', 'name', 'far')
        for name in ('eth1', 'far'):
            host.namespace('ip', 'link', 'set', name, 'up')
        pieces = [text for language, text in blocks('ports.md') if language == 'toml']
        for piece in pieces:
            lines = dict(uplink='uplink = "sink"\n',
                         tunnel='tunnel = { address = "192.0.2.1", mac = "02:00:00:00:0a:00" }\n',
                         port='port = "loopback"\n')
            key = re.match(r'\w+', piece)
            if key:
                lines[key[0]] = piece
            machine = piece if not key else '[[host.vm]]\nname = "web1"\nmac = "52:54:00:00:00:01"\n' + lines['port']
            text = f'[[host]]\nname = "a"\n{lines["uplink"]}{lines["tunnel"]}{machine}'
            host.write(text, '')
            try:
                out = host.run('vesperd --config /etc/vesper/vesper.toml --for 1s')
                report.check('in' in out, out)
            except RuntimeError as error:
                report.check(False, f'an example of docs/ports.md: {piece}{error}')
        report.check(len(pieces) >= 5, f'{len(pieces)} examples in docs/ports.md')
    finally:
        host.close()


def run(report, work, quick=False):
    made = [place for place in PLACES if not os.path.exists(place)]
    for place in made:
        os.mkdir(place)
    try:
        with tempfile.TemporaryDirectory(prefix='vesper-guide-') as directory:
            guide = Guide()
            report.check(sum(1 for line in guide.toml.splitlines() if line.strip()) <= 10, 'more than ten lines a host')
            report.check(guide.toml in (ROOT / 'README.md').read_text(), 'README.md has another configuration')
            examples(report, directory)
            two_hosts(report, work, directory, guide, quick)
            kernel_in_place(report, work, directory, guide)
    finally:
        for place in made:
            os.rmdir(place)
