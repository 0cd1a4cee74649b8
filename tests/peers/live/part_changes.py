"""What changes while packets flow: reload, expiry, deletion, a machine that moves to another port.

    kernel of this host ── TAP ── vesperd ── veth ── vesperd ── TAP ── kernel of this host

Whatever happens, an observer of the link between the hosts sees no clear text; and a machine that
has moved goes on with the numbers that its associations have reached.
"""
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from guest import aead
from net import HOST_MAC, PEER_HOST_MAC, Namespace, Sniffer, Vesperd, host, vesperd_path

OUTER, INNER = ('192.0.2.1', '192.0.2.2'), ('10.0.1.1', '10.0.2.1')
MACS, HOST_MACS = ('02:00:00:00:0a:01', '02:00:00:00:0b:01'), (HOST_MAC, PEER_HOST_MAC)
SUITE = "rfc4106(gcm(aes))"


class Bed:
    def __init__(self, directory):
        self.directory, self.keys = Path(directory), 0
        self.sides = (Namespace(), Namespace())
        self.sides[0]('ip', 'link', 'add', 'wire', 'type', 'veth', 'peer', 'name', 'wire', 'netns', self.sides[1].name)
        for side, ns in enumerate(self.sides):
            ns('sysctl', '-qw', 'net.ipv6.conf.wire.disable_ipv6=1')
            ns('ip', 'link', 'set', 'wire', 'up')
            self.tap(side, 'vm0')
            self.give(side, 'vm0')

    def close(self):
        for ns in self.sides:
            ns.close()

    def tap(self, side, name):
        self.sides[side]('ip', 'tuntap', 'add', name, 'mode', 'tap', 'vnet_hdr')
        self.sides[side]('sysctl', '-qw', f'net.ipv6.conf.{name}.disable_ipv6=1')

    def give(self, side, name):
        """Makes this interface the one of the machine, which is this host's own kernel."""
        self.sides[side].batch(f'''link set {name} address {MACS[side]}
link set {name} up
addr add {INNER[side]}/24 dev {name}
route add {INNER[1 - side]}/32 dev {name} src {INNER[side]}
''')

    def take(self, side, name):
        self.sides[side]('ip', 'link', 'set', name, 'down')
        self.sides[side]('ip', 'addr', 'flush', 'dev', name)

    def states(self, side, limit='', turn=0):
        """Two associations, the same on both sides; each turn has keys and SPIs of its own."""
        return [f'src {OUTER[n]} dst {OUTER[1 - n]} proto esp spi {0x1000 + 16 * turn + n:#x} reqid 1 mode tunnel '
                f'flag esn replay-window 1024 {aead(SUITE, bytes((i * 5 + n + 2 * turn) & 255 for i in range(36)), 128)} '
                f'{limit} dir {"out" if n == side else "in"}' for n in (0, 1)]

    def policies(self, side):
        ends = (f'src {OUTER[side]} dst {OUTER[1 - side]}', f'src {OUTER[1 - side]} dst {OUTER[side]}')
        return [f'dir {way} tmpl {pair} proto esp reqid 1 mode tunnel' for way, pair in zip(('out', 'in'), ends)]

    def control(self, side):
        return self.directory / f'{"ab"[side]}.control'

    def text(self, side, states, policies):
        daemon = f'[daemon]\ncontrol = "{self.control(side)}"\n'
        return daemon + host('ab'[side], OUTER[side], HOST_MACS[side], {'af_packet': {'interface': 'wire'}},
                             [{'name': 'vm', 'mac': MACS[side], 'port': {'tap': {'interface': 'vm0'}},
                               'sa': [f'ip xfrm state add {state}' for state in states],
                               'policy': [f'ip xfrm policy add {policy}' for policy in policies]}])

    def vesperd(self, side, limit='', turn=0):
        ns = self.sides[side]
        up = lambda: self.control(side).exists() and 'LOWER_UP' in ns('ip', 'link', 'show', 'vm0')
        return Vesperd(ns, self.text(side, self.states(side, limit, turn), self.policies(side)), ready=up)

    def vesper(self, side, *words, check=True, **more):
        program = str(Path(vesperd_path()).with_name('vesper'))
        done = subprocess.run([program, '--socket', str(self.control(side)), *words], capture_output=True, text=True,
                              timeout=30, **more)
        if check and done.returncode:
            raise RuntimeError(f'vesper {" ".join(words)}: {done.returncode} {done.stdout}{done.stderr}')
        return done.stdout

    def ping(self, side=0, count=3):
        answers = self.sides[side].ping(INNER[1 - side], count=count)
        return answers == count, f'{answers} of {count} answers'

    def flow(self):
        """A steady stream from the first machine, which does not wait for answers."""
        return self.sides[0].start('ping', '-n', '-q', '-i', '0.005', '-W', '1', INNER[1], stdout=-1, text=True)


def watched(report, bed, title, change, least=20):
    """Runs `change` under a flow, with both daemons; nothing in clear text is seen meanwhile."""
    sniffer = Sniffer(*((ns, 'wire') for ns in bed.sides))
    flow = bed.flow()
    try:
        change()
    finally:
        flow.send_signal(signal.SIGINT)
        flow.communicate(timeout=10)
        time.sleep(0.2)
        sniffer.stop()
        seen = sniffer.kinds()
        report.check(seen.get('clear', 0) == 0, f'{title}: clear text outside: {seen}')
        report.check(seen.get('esp', 0) >= least, f'{title}: the sniffer saw little: {seen}')
        report.note(f'{title}: sniffer: {seen}')
        sniffer.close()


def reloads(report, bed, times):
    """The configuration loses its policies, its associations, both, and gets them back."""
    with bed.vesperd(0) as a, bed.vesperd(1):
        path = Path(a.directory.name) / 'vesper.toml'

        def change():
            time.sleep(0.5)
            whole = (bed.states(0), bed.policies(0))
            for turn in range(times):
                for states, policies in ((whole[0], []), whole, ([], whole[1]), ([], []), whole):
                    path.write_text(bed.text(0, states, policies))
                    if turn % 2:
                        bed.vesper(0, 'reload')
                    else:
                        a.process.send_signal(signal.SIGHUP)
                    time.sleep(0.1)
        watched(report, bed, f'{times * 5} reloads', change)
        good, out = bed.ping()
        report.check(good, f'after the reloads: {out}\n{a.output()}')


def until_nothing_passes(bed):
    """Waits until a limit has been reached; a busy machine takes its time to send so many packets."""
    time.sleep(3.5)
    end = time.time() + 30
    while time.time() < end and bed.ping(count=1)[0]:
        time.sleep(0.2)


def expiry(report, bed):
    """Hard limits of time and of packets in mid-flow, and deletion."""
    for title, limit in (('expiry by time', 'limit time-hard 2'), ('expiry by packets', 'limit packet-hard 200')):
        with bed.vesperd(0, limit, turn=1) as a, bed.vesperd(1, turn=1):
            watched(report, bed, title, lambda: until_nothing_passes(bed))
            out = bed.sides[0]('ping', '-n', '-c', '3', '-i', '0.1', '-W', '1', INNER[1], check=False)
            report.check(' 0 received' in out, f'{title}: packets still pass: {out}')
            # The next pair takes over; deleted, it leaves nothing that passes.
            for side in (0, 1):
                bed.vesper(side, 'sa', 'import', '--vm', 'vm', input='\n'.join(
                    f'ip xfrm state add {state}' for state in bed.states(side, turn=2)) + '\n')
            good, out = bed.ping()
            report.check(good, f'{title}, with new associations: {out}\n{a.output()}')
            watched(report, bed, f'deletion after {title}', lambda: (time.sleep(2), bed.vesper(0, 'sa', 'flush'),
                                                                   time.sleep(0.5)))


def spis(text):
    return re.findall(r'spi (0x[0-9a-f]+)', text)


def sequence(capture):
    """The ESP sequence numbers of one SPI in a capture, in order."""
    numbers = []
    data, at = Path(capture).read_bytes(), 24
    while at + 16 <= len(data):
        length = int.from_bytes(data[at + 8:at + 12], 'little')
        frame = data[at + 16:at + 16 + length]
        at += 16 + length
        if frame[12:14] == b'\x08\x00' and frame[23] == 50 and frame[34:38] == (0x1000 + 16 * 3).to_bytes(4, 'big'):
            numbers.append(int.from_bytes(frame[38:42], 'big'))
    return numbers


def moves(report, bed, times):
    """The machine goes from one TAP interface to another and back; its associations go on."""
    bed.tap(0, 'vm1')
    with bed.vesperd(0, turn=3) as a, bed.vesperd(1, turn=3):
        sniffer = Sniffer((bed.sides[1], 'wire'))
        good, out = bed.ping()
        report.check(good, f'before the machine moves: {out}')
        before = spis(bed.vesper(0, 'sa', 'list', '--xfrm'))
        names = ['vm0', 'vm1']
        lost = []
        for _ in range(times):
            old, new = names
            bed.take(0, old)
            bed.vesper(0, 'vm', 'move', 'vm', f'{{ tap = {{ interface = "{new}" }} }}')
            bed.give(0, new)
            good, out = bed.ping()
            lost += [] if good else [out]
            names.reverse()
        report.check(not lost, f'after the machine moved: {len(lost)} of {times} times: {lost[:1]}\n{a.output()}')
        after = spis(bed.vesper(0, 'sa', 'list', '--xfrm'))
        report.check(len(before) == 2 and before == after, f'associations of a machine that moved: {before}, then {after}')
        time.sleep(0.2)
        sniffer.stop()
        numbers = sequence(sniffer.captures[0])
        report.check(numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3 * (times + 1),
                     f'sequence numbers after the machine moved {times} times: {numbers}')
        report.check(sniffer.kinds().get('clear', 0) == 0, f'moving: clear text outside: {sniffer.kinds()}')
        sniffer.close()


def run(report, _work, quick=False):
    with tempfile.TemporaryDirectory(prefix='vesper-changes-') as directory:
        bed = Bed(directory)
        try:
            reloads(report, bed, 2 if quick else 10)
            expiry(report, bed)
            moves(report, bed, 4 if quick else 50)
        finally:
            bed.close()
