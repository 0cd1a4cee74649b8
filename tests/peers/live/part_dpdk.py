"""DPDK guests on two vesperd: every packet intact, restarts of either side.

    testpmd ── vhost-user ── vesperd ── veth ── vesperd ── vhost-user ── testpmd
"""
import os
import struct
import tempfile
import time
from pathlib import Path

from guest import aead
from net import HOST_MAC, PEER_HOST_MAC, Namespace, Sniffer, Vesperd, host
from testpmd import Testpmd

VM_MAC, PEER_VM_MAC = '02:00:00:00:0a:01', '02:00:00:00:0b:01'
ADDRESSES = ('192.0.2.1', '192.0.2.2')
# 64 bytes on the wire have 4 of checksum, which neither side has in its memory.
SIZES = (60, 61, 64, 65, 100, 128, 255, 256, 570, 1024, 1280, 1499, 1500, 1514, 2000, 4000, 4096, 8192, 8999, 9014)


class Bed:
    def __init__(self, directory):
        self.directory = Path(directory)
        self.generation = 0
        self.sides = (Namespace(), Namespace())
        a, b = self.sides
        a('ip', 'link', 'add', 'wire', 'mtu', '9200', 'type', 'veth', 'peer', 'name', 'wire', 'mtu', '9200',
          'netns', b.name)
        for side in self.sides:
            side('sysctl', '-qw', 'net.ipv6.conf.wire.disable_ipv6=1')
            side('ip', 'link', 'set', 'wire', 'up')

    def close(self):
        for side in self.sides:
            side.close()

    def socket(self, side):
        return self.directory / f'{"ab"[side]}.sock'

    def vesperd(self, side, queues=1, mode='server'):
        keys = [bytes((i * 3 + n + 2 * self.generation) & 255 for i in range(36)) for n in (0, 1)]
        states = [f'ip xfrm state add src {ADDRESSES[n]} dst {ADDRESSES[1 - n]} proto esp spi {0x1000 + n:#x} '
                  f'reqid 1 mode tunnel flag esn replay-window 1024 '
                  f'{aead("rfc4106(gcm(aes))", keys[n], 128)} dir {"out" if n == side else "in"}'
                  for n in (0, 1)]
        policies = [f'ip xfrm policy add dir {direction} tmpl src {tunnel[0]} dst {tunnel[1]} proto esp '
                    f'reqid 1 mode tunnel'
                    for direction, tunnel in (('out', (ADDRESSES[side], ADDRESSES[1 - side])),
                                              ('in', (ADDRESSES[1 - side], ADDRESSES[side])))]
        port = {'socket': str(self.socket(side)), 'queues': queues, 'mtu': 9000, 'mode': mode}
        text = host('ab'[side], ADDRESSES[side], (HOST_MAC, PEER_HOST_MAC)[side],
                    {'af_packet': {'interface': 'wire'}},
                    [{'name': 'vm', 'mac': (VM_MAC, PEER_VM_MAC)[side], 'port': {'vhost_user': port},
                      'sa': states, 'policy': policies}], gateway=ADDRESSES[1 - side], frame=9600)
        ready = self.socket(side).exists if mode == 'server' else None
        return Vesperd(self.sides[side], text, ready=ready)

    def virtio(self, side, queues=1, server=False):
        mac = (VM_MAC, PEER_VM_MAC)[side]
        return (f'net_virtio_user0,path={self.socket(side)},queues={queues},queue_size=1024,mac={mac}'
                + (',server=1' if server else ''))


def packet(number, length, source, destination, addresses):
    """A UDP packet in a frame of `length` bytes, every byte of it known."""
    body = bytes((number * 7 + index) & 255 for index in range(length - 42))
    udp = struct.pack('!HHHH', 1000 + number % 97, 2000, len(body) + 8, 0) + body
    ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), number & 0xffff, 0, 64, 17, 0,
                     bytes(map(int, addresses[0].split('.'))), bytes(map(int, addresses[1].split('.'))))
    total = sum(struct.unpack('!10H', ip))
    total = (total & 0xffff) + (total >> 16)
    ip = ip[:10] + struct.pack('!H', ~((total & 0xffff) + (total >> 16)) & 0xffff) + ip[12:]
    macs = b''.join(bytes.fromhex(mac.replace(':', '')) for mac in (destination, source))
    return macs + b'\x08\x00' + ip + udp


def write_pcap(path, frames):
    with open(path, 'wb') as file:
        file.write(struct.pack('<IHHiIII', 0xa1b2c3d4, 2, 4, 0, 0, 65535, 1))
        for frame in frames:
            file.write(struct.pack('<IIII', 0, 0, len(frame), len(frame)) + frame)


def read_pcap(path):
    data, at, frames = Path(path).read_bytes(), 24, []
    while at + 16 <= len(data):
        length = struct.unpack_from('<I', data, at + 8)[0]
        frames.append(data[at + 16:at + 16 + length])
        at += 16 + length
    return frames


def intact(report, bed, queues):
    """Files of packets in on both sides; what comes out at the other side is the same packets."""
    inner = ('10.0.1.1', '10.0.2.1')
    macs = ((VM_MAC, HOST_MAC), (PEER_VM_MAC, PEER_HOST_MAC))
    count = 400 // queues
    sent, machines = [], []
    with bed.vesperd(0, queues) as a, bed.vesperd(1, queues) as b:
        sniffer = Sniffer(*((side, 'wire') for side in bed.sides))
        try:
            for side in (0, 1):
                frames = []
                vdev = 'net_pcap0'
                for queue in range(queues):
                    mine = [packet(number * queues + queue, SIZES[number % len(SIZES)], *macs[side],
                                   inner[::1 if side == 0 else -1]) for number in range(count)]
                    write_pcap(bed.directory / f'in{side}{queue}', mine)
                    vdev += f',rx_pcap={bed.directory}/in{side}{queue}'
                    frames += mine
                for queue in range(queues):
                    vdev += f',tx_pcap={bed.directory}/out{side}{queue}'
                sent.append(frames)
                machines.append(Testpmd([bed.virtio(side, queues), vdev], queues, cpu=str(side)))
            for machine in machines:
                machine.say('start')
            want = count * queues
            end = time.time() + 20
            while time.time() < end and any(m.counts(0)[0] < want for m in machines):
                time.sleep(0.2)
            for machine in machines:
                machine.say('stop')
        finally:
            for machine in machines:
                machine.close()
            sniffer.stop()
        for side in (0, 1):
            got = []
            for queue in range(queues):
                got += read_pcap(bed.directory / f'out{1 - side}{queue}')
            # The machine's address in front, the host's behind it; the packet as it was.
            to = bytes.fromhex((PEER_VM_MAC, VM_MAC)[side].replace(':', ''))
            report.check(all(frame[:6] == to for frame in got), 'frames for somebody else')
            missing = len(sent[side]) - len(got)
            same = sorted(f[14:] for f in sent[side]) == sorted(f[14:] for f in got)
            report.check(same, f'{queues} queues, from {"ab"[side]}: {missing} of {len(sent[side])} missing, or '
                               f'not what was sent\n{a.output()}{b.output()}')
        kinds = sniffer.kinds()
        report.check(kinds.get('esp', 0) >= 2 * want and kinds.get('clear', 0) == 0, f'on the wire: {kinds}')
        report.note(f'{queues} queues, {want} packets each way, {SIZES[0]} to {SIZES[-1]} bytes; wire: {kinds}')
        sniffer.close()


def echo(side, far=False):
    """Options of a guest that sends a burst, and of one that sends it back."""
    mac = (HOST_MAC, PEER_HOST_MAC)[side]
    more = ['--forward-mode=5tswap'] if far else ['--forward-mode=rxonly']
    return dict(ip=('198.18.0.1', '198.18.0.2'), peer=mac, more=more, cpu=str(side))


def burst(machine, bursts=4, seconds=10):
    """Sends bursts of 32; how many come back."""
    # A guest that makes the socket looks for a new connection when it is asked for its link.
    machine.say('show port summary all')
    before = machine.counts()[0]
    machine.say(f'start tx_first {bursts}')
    end = time.time() + seconds
    while machine.counts()[0] - before < bursts * 32 and time.time() < end:
        time.sleep(0.02)
    machine.say('stop')
    return machine.counts()[0] - before


def guests_restart(report, bed, times):
    """testpmd comes and goes; vesperd stays."""
    with bed.vesperd(0) as a, bed.vesperd(1), Testpmd([bed.virtio(1)], **echo(1, far=True)) as far:
        far.say('start')
        descriptors = set()
        for turn in range(times):
            with Testpmd([bed.virtio(0)], **echo(0)) as near:
                back = burst(near)
            report.check(back == 128, f'guest started {turn + 1} times: {back} of 128 packets back\n{a.output()}')
            time.sleep(0.05)
            descriptors.add(len(os.listdir(f'/proc/{a.process.pid}/fd')))
        report.check(len(descriptors) == 1 or times < 2, f'open descriptors: {descriptors}')
        report.check(a.process.poll() is None, 'vesperd has ended')
        far.say('stop')


def daemons_restart(report, bed, times):
    """vesperd comes and goes; testpmd stays."""
    for side in (0, 1):
        bed.socket(side).unlink(missing_ok=True)
    # A guest that makes the socket waits for somebody to connect before it starts.
    daemons = [bed.vesperd(side, mode='client') for side in (0, 1)]
    try:
        with Testpmd([bed.virtio(0, server=True)], **echo(0)) as near, \
                Testpmd([bed.virtio(1, server=True)], **echo(1, far=True)) as far:
            far.say('start')
            back = []
            for turn in range(times):
                end = time.time() + 15
                got = 0
                # Until both are connected, what is sent is lost.
                while got < 128 and time.time() < end:
                    far.say('show port summary all')
                    got = burst(near, seconds=1)
                back.append(got)
                # With a signal, or without warning; on both hosts, since one of them would take
                # numbers from the beginning for replays, and with new keys.
                bed.generation += 1
                for side in (0, 1):
                    if turn % 2:
                        daemons[side].stop()
                    daemons[side].__exit__()
                    daemons[side] = bed.vesperd(side, mode='client')
            report.check(min(back) == 128, f'vesperd started {times} times: of 128 packets came back {back}')
            far.say('stop')
    finally:
        for daemon in daemons:
            daemon.__exit__()


def run(report, _work, quick=False):
    with tempfile.TemporaryDirectory(prefix='vesper-dpdk-') as directory:
        bed = Bed(directory)
        try:
            for queues in (1, 4):
                intact(report, bed, queues)
            guests_restart(report, bed, 3 if quick else 100)
            daemons_restart(report, bed, 3 if quick else 20)
        finally:
            bed.close()
