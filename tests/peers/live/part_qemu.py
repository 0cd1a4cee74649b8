"""Linux guests of QEMU over vhost-user, each behind a vesperd of its own.

    QEMU (virtio-net) ── vhost-user ── vesperd ── veth ── vesperd ── vhost-user ── QEMU (virtio-net)
"""
import tempfile
import time

from guest import Guest
from net import Sniffer
from part_dpdk import PEER_VM_MAC, VM_MAC, Bed

MACS = (VM_MAC, PEER_VM_MAC)
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
        finally:
            for guest in guests:
                guest.close()
            bed.close()
