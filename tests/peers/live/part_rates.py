"""How fast the ports are, against other software on the same cores in the same run.

    testpmd (client) ── vhost-user ── vesperd, or testpmd's net_vhost
    sender ── TAP or veth ── vesperd, or a bare loop that reads and writes (`loops.c`)

What is compared takes turns, and of each the median counts.
"""
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from guest import aead
from net import HOST_MAC, ROOT, TARGET, Namespace, Vesperd, host
from testpmd import Testpmd

VM_MAC, FAR_MAC = '02:00:00:00:0a:01', '02:00:00:00:0c:01'
# The server works on the first one, whoever feeds it on the second one.
SERVER, CLIENT = '0', '1'
# Bursts of 32 packets that go round.
ROUND = 16
KEY = bytes(range(36))


def configuration(port, uplink, protected=False):
    """A host with one machine, pinned; its packets go to `uplink`."""
    machine = {'name': 'vm', 'mac': VM_MAC, 'port': port, 'require_protection': protected}
    if protected:
        machine['sa'] = [f'ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 reqid 1 mode tunnel '
                         f'flag esn replay-window 1024 {aead("rfc4106(gcm(aes))", KEY, 128)} dir out']
        machine['policy'] = ['ip xfrm policy add dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 1 mode tunnel']
    return host('a', '192.0.2.1', HOST_MAC, uplink, [machine], cpus=[int(SERVER)])


class Backend:
    """testpmd as the other vhost-user server."""

    def __init__(self, socket, mode):
        self.machine = Testpmd([f'net_vhost0,iface={socket},queues=1'], cpu=SERVER, descriptors=1024,
                               more=[f'--forward-mode={mode}'], small=True)
        self.machine.say('start')

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.machine.close()


def vhost_rate(directory, server, mode, seconds):
    """Packets a second that a guest gets rid of (txonly), or that go round (macswap)."""
    socket = Path(directory) / 'rate.sock'
    socket.unlink(missing_ok=True)
    if server == 'testpmd':
        backend = Backend(socket, 'rxonly' if mode == 'txonly' else 'macswap')
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
            return (after - before) / (end - start)


def turns(measure, what, repetitions):
    """The median of each of `what`, which take turns."""
    results = {name: [] for name in what}
    for _ in range(repetitions):
        for name in what:
            results[name].append(measure(name))
    return {name: statistics.median(values) for name, values in results.items()}, results


def vhost(report, quick):
    repetitions, seconds = (3, 0.5) if quick else (7, 1)
    with tempfile.TemporaryDirectory(prefix='vesper-rates-') as directory:
        for mode in ('txonly', 'macswap'):
            what = ('testpmd', 'vesperd', 'protected') if mode == 'txonly' else ('testpmd', 'vesperd')
            rates, all_of_them = turns(lambda name: vhost_rate(directory, name, mode, seconds), what, repetitions)
            ratio = rates['vesperd'] / rates['testpmd']
            shown = ', '.join(f'{name} {rate / 1e6:.2f} M/s' for name, rate in rates.items())
            report.note(f'vhost-user, 64 bytes, {mode}: {shown}; {ratio:.2f} of testpmd')
            report.note(str({name: [round(v / 1e6, 2) for v in values] for name, values in all_of_them.items()}))
            report.check(ratio >= 0.8, f'vhost-user {mode}: {ratio:.2f} of testpmd')


def run(report, _work, quick=False):
    vhost(report, quick)
