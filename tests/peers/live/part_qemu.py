"""Linux guests of QEMU over vhost-user, each behind a vesperd of its own; then two behind the same.

    QEMU (virtio-net) ── vhost-user ── vesperd ── veth ── vesperd ── vhost-user ── QEMU (virtio-net)
"""
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guest import Guest, aead
from net import HOST_MAC, PEER_HOST_MAC, Sniffer, Vesperd, host
from part_dpdk import ADDRESSES as OUTER, PEER_VM_MAC, VM_MAC, Bed

MACS = (VM_MAC, PEER_VM_MAC)
TWO = (VM_MAC, '02:00:00:00:0a:02')
ADDRESSES = ('10.0.1.1', '10.0.1.2')


def boot(bed, work, side):
    guest = Guest(work, mac=MACS[side], vhost_user=bed.socket(side), mtu=9000)
    guest.sh(f'ip addr add {ADDRESSES[side]}/24 dev eth0', check=True)
    return guest


def ping(guest, to, size=56, count=3):
    out = guest.sh(f'ping -c {count} -i 0.2 -W 5 -s {size} {to}', timeout=60)
    return f'{count} packets received' in out, out


def transfer(report, guests, megabytes):
    """TCP one way, every byte compared, with what the guest leaves to us switched on."""
    features = guests[0].sh('ethtool -k eth0')
    for feature in ('tx-checksumming', 'tcp-segmentation-offload'):
        report.check(f'{feature}: on' in features, f'{feature} is not on in the guest:\n{features}')
    size = megabytes << 20
    expected = guests[0].sh(f'yes vesper | head -c {size} | md5sum', timeout=300).split()[0]
    # An end of its input would make busybox's nc hang up.
    guests[1].sh('sleep 1000 | nc -l -p 5000 > /tmp/got & sleep 0.5')
    start = time.time()
    guests[0].sh(f'yes vesper | head -c {size} | nc {ADDRESSES[1]} 5000', timeout=400)
    seconds = time.time() - start
    got = guests[1].sh('sleep 1; md5sum /tmp/got; wc -c < /tmp/got; rm /tmp/got', timeout=300).split()
    report.check(got[:1] == [expected], f'{megabytes} MB: {got} in place of {expected} {size}')
    report.note(f'TCP: {megabytes} MB in {seconds:.1f} s (the guests are emulated)')


def neighbourly(bed, side):
    """vesperd with two machines on the first host and one on the second, each pair with keys of its own."""
    def state(number, way):
        ends = OUTER if way == 0 else OUTER[::-1]
        key = bytes((i * 7 + 50 * number + way) & 255 for i in range(36))
        return (f'ip xfrm state add src {ends[0]} dst {ends[1]} proto esp spi {0x1000 + 2 * number + way:#x} reqid {number} '
                f'mode tunnel flag esn replay-window 1024 {aead("rfc4106(gcm(aes))", key, 128)} '
                f'dir {"out" if way == side else "in"}')

    def policies(number, selector):
        pairs = (OUTER[side], OUTER[1 - side]), (OUTER[1 - side], OUTER[side])
        words = (f'dst {selector}', f'src {selector}') if selector else ('', '')
        return [f'ip xfrm policy add {word} dir {way} tmpl src {a} dst {b} proto esp reqid {number} mode tunnel'
                for way, word, (a, b) in zip(('out', 'in'), words, pairs)]
    if side == 0:
        vms = [{'name': f'vm{number}', 'mac': TWO[number - 1], 'port': {'vhost_user': {'socket': f'{bed.directory}/two{number}.sock'}},
                'sa': [state(number, 0), state(number, 1)], 'policy': policies(number, None)} for number in (1, 2)]
    else:
        vms = [{'name': 'vm', 'mac': PEER_VM_MAC, 'port': {'vhost_user': {'socket': f'{bed.directory}/far.sock'}},
                'sa': [state(number, way) for number in (1, 2) for way in (0, 1)],
                'policy': policies(1, '10.0.1.1') + policies(2, '10.0.1.11')}]
    text = host('ab'[side], OUTER[side], (HOST_MAC, PEER_HOST_MAC)[side], {'af_packet': {'interface': 'wire'}}, vms,
                gateway=OUTER[1 - side])
    last = Path(bed.directory) / ('two2.sock' if side == 0 else 'far.sock')
    return Vesperd(bed.sides[side], text, ready=last.exists)


def two_at_once(report, bed, work):
    """Two guests behind one vesperd, at once to a third one behind another; not to each other."""
    guests = []
    with neighbourly(bed, 0) as a, neighbourly(bed, 1) as b:
        sniffer = Sniffer(*((side, 'wire') for side in bed.sides))
        try:
            for name, mac, address in (('two1', TWO[0], '10.0.1.1'), ('two2', TWO[1], '10.0.1.11'),
                                       ('far', PEER_VM_MAC, '10.0.1.2')):
                guest = Guest(work, mac=mac, vhost_user=f'{bed.directory}/{name}.sock')
                guests.append(guest)
                guest.sh(f'ip addr add {address}/24 dev eth0', check=True)
            with ThreadPoolExecutor() as pool:
                answers = list(pool.map(lambda guest: ping(guest, '10.0.1.2', size=1000, count=20), guests[:2]))
            for number, (good, out) in enumerate(answers):
                report.check(good, f'guest {number + 1} of two: {out}\n{a.output()}{b.output()}')
            for address in ('10.0.1.1', '10.0.1.11'):
                good, out = ping(guests[2], address)
                report.check(good, f'the far guest to {address}: {out}')
            # Their policies say tunnel to the far host, which has nothing to say about them: between
            # the two of them nothing passes, in clear text least of all.
            out = guests[0].sh('ping -c 2 -i 0.2 -W 1 10.0.1.11')
            report.check(' 0 packets received' in out, f'one guest reaches the other one without protection: {out}')
            time.sleep(0.2)
            sniffer.stop()
            kinds = sniffer.kinds()
            report.check(kinds.get('esp', 0) >= 92 and kinds.get('clear', 0) == 0, f'two guests, on the wire: {kinds}')
            report.note(f'two guests at once; wire: {kinds}')
        finally:
            for guest in guests:
                guest.close()
            sniffer.close()


def the_other_way_round(report, bed, work):
    """The hypervisor makes the socket, and vesperd connects to it; either of both starts again."""
    bed.generation += 1
    for side in (0, 1):
        bed.socket(side).unlink(missing_ok=True)
    guests = []

    def begin(side):
        guest = Guest(work, mac=MACS[side], vhost_user=bed.socket(side), serves=True)
        guest.sh(f'ip addr add {ADDRESSES[side]}/24 dev eth0', check=True)
        return guest

    def works(what, said):
        end = time.time() + 30
        while not ping(guests[0], ADDRESSES[1], count=1)[0] and time.time() < end:
            pass
        good, out = ping(guests[0], ADDRESSES[1])
        report.check(good, f'QEMU makes the socket, {what}: {out}\n{said()}')

    try:
        with bed.vesperd(0, mode='client') as a, bed.vesperd(1, mode='client') as b:
            guests += [begin(side) for side in (0, 1)]
            works('to begin with', lambda: a.output() + b.output())
            guests[0].close()
            guests[0] = begin(0)
            works('after it started again', lambda: a.output() + b.output())
        bed.generation += 1
        with bed.vesperd(0, mode='client') as a, bed.vesperd(1, mode='client') as b:
            works('after vesperd started again', lambda: a.output() + b.output())
    finally:
        for guest in guests:
            guest.close()


def run(report, work, quick=False):
    with tempfile.TemporaryDirectory(prefix='vesper-qemu-') as directory:
        bed = Bed(directory)
        guests = []
        try:
            with bed.vesperd(0) as a, bed.vesperd(1) as b:
                sniffer = Sniffer(*((side, 'wire') for side in bed.sides))
                guests = [boot(bed, work, side) for side in (0, 1)]
                report.note(f'guests: Linux {guests[0].sh("uname -r").strip()}')
                for side in (0, 1):
                    good, out = ping(guests[side], ADDRESSES[1 - side])
                    report.check(good, f'ping from {"ab"[side]}: {out}\n{a.output()}{b.output()}')
                for guest in guests:
                    report.check('mtu 9000' in guest.sh('ip link show eth0'), 'the guest does not know the MTU')
                good, out = ping(guests[0], ADDRESSES[1], size=8900)
                report.check(good, f'jumbo frames: {out}')
                transfer(report, guests, 5 if quick else 100)
                # The guest of one side starts again; the other side and both vesperd stay.
                guests[0].close()
                guests[0] = boot(bed, work, 0)
                good, out = ping(guests[0], ADDRESSES[1])
                report.check(good, f'after the guest started again: {out}')
                # vesperd starts again, on both hosts, since a window would take numbers from the
                # beginning for replays; the guests stay and find it.
                a.stop()
                b.stop()
                with bed.vesperd(0) as a, bed.vesperd(1) as b:
                    end = time.time() + 30
                    while not ping(guests[0], ADDRESSES[1], count=1)[0] and time.time() < end:
                        pass
                    good, out = ping(guests[0], ADDRESSES[1])
                    report.check(good, f'after vesperd started again: {out}\n{a.stop()}{b.stop()}')
                sniffer.stop()
                kinds = sniffer.kinds()
                report.check(kinds.get('esp', 0) > 0 and kinds.get('clear', 0) == 0, f'on the wire: {kinds}')
                sniffer.close()
            while guests:
                guests.pop().close()
            the_other_way_round(report, bed, work)
            two_at_once(report, bed, work)
        finally:
            for guest in guests:
                guest.close()
            bed.close()
