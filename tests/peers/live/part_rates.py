"""How fast the ports are, beside other software on the same cores in the same run.

    testpmd (client) ── vhost-user ── testpmd's net_vhost | our port alone | vesperd
    sender ──────────── TAP or veth ─ a bare read and write loop (`loops.c`) | our port alone | vesperd

What is compared takes turns, and of each the best counts: a disturbance only ever takes away.
The port alone (the example
`port_echo`) does what its peer does; vesperd has a switch, policies and an adapter behind it.
"""
import csv
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from guest import aead
from net import HOST_MAC, ROOT, TARGET, Namespace, Vesperd, host, run as run_command
from testpmd import Testpmd

VM_MAC, FAR_MAC = '02:00:00:00:0a:01', '02:00:00:00:0c:01'
# The server works on the first CPU, whoever feeds it on the second one.
SERVER, CLIENT = '0', '1'
KEY = bytes(range(36))
# Rounds of measurements until a goal is reached.
ROUNDS = 3
# Bursts of 32 packets that go round between client and server.
ROUND = 16


def configuration(port, uplink, protected=False):
    """A host with one machine, pinned; its packets go to `uplink`."""
    machine = {'name': 'vm', 'mac': VM_MAC, 'port': port, 'require_protection': protected}
    if protected:
        tunnel = 'src 192.0.2.1 dst 192.0.2.2 proto esp'
        machine['sa'] = [f'ip xfrm state add {tunnel} spi 0x1000 reqid 1 mode tunnel flag esn replay-window 1024 '
                         f'{aead("rfc4106(gcm(aes))", KEY, 128)} dir out']
        machine['policy'] = [f'ip xfrm policy add dir out tmpl {tunnel} reqid 1 mode tunnel']
    return host('a', '192.0.2.1', HOST_MAC, uplink, [machine], cpus=[int(SERVER)])


class Process:
    """A program on the server's CPU, until the end of the block."""

    def __init__(self, namespace, *words, ready=None, cpu=SERVER):
        self.process = namespace.start('taskset', '-c', cpu, *words, stdout=-3)
        end = time.time() + 10
        while ready and not ready():
            if self.process.poll() is not None or time.time() > end:
                raise RuntimeError(f'{words} did not start')
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Backend:
    """testpmd as the vhost-user server."""

    def __init__(self, socket, mode):
        self.machine = Testpmd([f'net_vhost0,iface={socket},queues=1'], cpu=SERVER, small=True,
                               more=[f'--forward-mode={mode}'])
        self.machine.say('start')

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.machine.close()


def vhost_rate(bed, server, mode, seconds):
    """Packets a second that a guest gets rid of (txonly), or that go round (macswap)."""
    socket = Path(bed.directory) / 'rate.sock'
    socket.unlink(missing_ok=True)
    if server == 'testpmd':
        backend = Backend(socket, 'rxonly' if mode == 'txonly' else 'macswap')
    elif server == 'port':
        backend = Process(bed.namespace, bed.port_echo, 'vhost-user', socket, '1',
                          'drop' if mode == 'txonly' else 'echo', ready=socket.exists)
    else:
        uplink = 'sink' if mode == 'txonly' else 'loopback'
        text = configuration({'vhost_user': {'socket': str(socket)}}, uplink, protected=server == 'protected')
        backend = Vesperd(None, text, ready=socket.exists)
    with backend:
        vdev = f'net_virtio_user0,path={socket},queues=1,queue_size=1024,mac={VM_MAC}'
        with Testpmd([vdev], cpu=CLIENT, ip=('10.0.1.1', '10.0.2.1'), peer=FAR_MAC, small=True,
                     more=[f'--forward-mode={mode}', '--txpkts=60']) as client:
            client.say('start' if mode == 'txonly' else f'start tx_first {ROUND}')
            time.sleep(0.3)
            which = 1 if mode == 'txonly' else 0
            start, before = time.perf_counter(), client.counts()[which]
            time.sleep(seconds)
            after, end = client.counts()[which], time.perf_counter()
            client.say('stop')
        rate = (after - before) / (end - start)
        if server in ('vesperd', 'protected'):
            said = backend.stop()
            # What is measured has to have gone all the way.
            if 'dropped' in said:
                raise RuntimeError(f'vesperd dropped packets: {said}')
        return rate


def interface_rate(bed, kind, server, seconds):
    """Frames a second that come back on an interface to which more are sent than can."""
    ns = bed.namespace
    ns('ip', 'link', 'add', 'near', 'type', 'veth', 'peer', 'name', 'far') if kind == 'af_packet' else \
        ns('ip', 'tuntap', 'add', 'near', 'mode', 'tap', *([] if server == 'bare' else ['vnet_hdr']))
    side = 'far' if kind == 'af_packet' else 'near'
    try:
        for name in {'near', side}:
            ns('sysctl', '-qw', f'net.ipv6.conf.{name}.disable_ipv6=1')
            ns('ip', 'link', 'set', name, 'up')
        if server == 'bare':
            backend = Process(ns, bed.loops, 'tap' if kind == 'tap' else 'packet', 'near')
        elif server == 'port':
            backend = Process(ns, bed.port_echo, *(('tap', 'near', '1') if kind == 'tap' else ('af-packet', 'near')))
        else:
            backend = Vesperd(ns, configuration({kind: {'interface': 'near'}}, 'loopback'))
        with backend:
            count = ['cat', f'/sys/class/net/{side}/statistics/rx_packets']
            # No shell and no namespace to enter between the two looks.
            with Process(ns, bed.loops, 'send', side, VM_MAC, FAR_MAC, cpu=CLIENT):
                time.sleep(0.4)
                if not int(ns(*count)):
                    time.sleep(2)
                start, before = time.perf_counter(), int(ns(*count))
                time.sleep(seconds)
                after, end = int(ns(*count)), time.perf_counter()
            return (after - before) / (end - start)
    finally:
        ns('ip', 'link', 'del', 'near', check=False)


class Bed:
    def __init__(self, directory):
        self.directory = directory
        self.loops, self.port_echo = Path(directory) / 'loops', TARGET / 'release' / 'examples' / 'port_echo'
        self.bench = TARGET / 'release' / 'vesper-bench'
        for what in (['-p', 'vesper-daemon', '--example', 'port_echo'], ['-p', 'vesper-bench']):
            subprocess.run(['cargo', 'build', '--quiet', '--release', *what], cwd=ROOT, check=True)
        run_command('gcc', '-O2', '-o', self.loops, Path(__file__).with_name('loops.c'))
        self.namespace = Namespace()


def compared(report, title, measure, what, repetitions, goal):
    """The best of each of `what`, which take turns. The port alone has to reach `goal` of its peer, the first one.

    Whoever disturbs the machine for long disturbs one of them more: there are up to three rounds.
    """
    rates = {name: 0.0 for name in what}
    for _ in range(ROUNDS):
        for name in list(what) * repetitions:
            rates[name] = max(rates[name], measure(name))
        peer = rates[what[0]]
        if rates['port'] >= goal * peer:
            break
    report.note(f'{title}: ' + ', '.join(f'{name} {rate / 1e6:.2f} M/s ({rate / peer:.2f})' for name, rate in rates.items()))
    report.check(rates['port'] >= goal * peer, f'{title}: the port reaches {rates["port"] / peer:.2f} of {what[0]}, not {goal}')
    return rates


def engine_cost(bed):
    """Nanoseconds that the engine alone takes for a packet of the size, by the benchmark."""
    figures = Path(bed.directory) / 'engine.csv'
    run_command(bed.bench, 'esp', '--suite', 'aes256gcm16', '--size', '64', '--sas', '1', '--dir', 'out',
                '--repetitions', '7', '--cpu', SERVER, '--csv', figures, timeout=300)
    with open(figures, newline='') as file:
        rates = [float(row['mpps']) for row in csv.DictReader(file) if row['who'].startswith('vesper-')]
    return 1000 / max(rates)


def run(report, _work, quick=False):
    repetitions, seconds = (3, 0.5) if quick else (7, 1)
    with tempfile.TemporaryDirectory(prefix='vesper-rates-') as directory:
        bed = Bed(directory)
        try:
            for mode in ('txonly', 'macswap'):
                what = ['testpmd', 'port', 'vesperd'] + ['protected'] * (mode == 'txonly')
                rates = compared(report, f'vhost-user, 64 bytes, {mode}',
                                 lambda server: vhost_rate(bed, server, mode, seconds), what, repetitions, 0.8)
                if 'protected' in what:
                    growth = 1e9 / rates['protected'] - 1e9 / rates['vesperd']
                    engine = engine_cost(bed)
                    met = 'met' if growth <= engine * 1.15 else 'not met'
                    report.note(f'AES-256-GCM adds {growth:.0f} ns a packet; the engine alone takes {engine:.0f} ns '
                                f'(goal {engine * 1.15:.0f}: {met})')
                    # What the adapter does for a protected packet is in it as well: a guard against getting worse.
                    report.check(growth <= engine * 2, f'protection adds {growth:.0f} ns a packet, the engine '
                                                       f'alone takes {engine:.0f} ns')
            for kind in ('tap', 'af_packet'):
                compared(report, f'{kind}, 64 bytes, back and forth',
                         lambda server: interface_rate(bed, kind, server, seconds),
                         ['bare', 'port', 'vesperd'], repetitions, 0.9)
        finally:
            bed.namespace.close()
