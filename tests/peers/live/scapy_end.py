"""scapy as the far end of a tunnel, on a link of its own: seals pings, opens what comes back.

Started by `part_scapy.py` with the Python that has scapy; takes what it needs as JSON, prints JSON.
"""
import ipaddress
import json
import select
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import scapy_peer
from sa import Sa
from scapy.layers.inet import ICMP, IP
from suites import SUITES


def main():
    order = json.load(sys.stdin)
    suite = SUITES[order['suite']]

    def association(spi, ends):
        return Sa(suite=suite, key=bytes.fromhex(order['key']), auth_key=bytes.fromhex(order['auth_key']), spi=spi,
                  source=ipaddress.ip_address(ends[0]), destination=ipaddress.ip_address(ends[1]),
                  encap=(4500, 4500) if order['natt'] else None, esn=order['esn'])
    here, there = order['outer'][1], order['outer'][0]
    sent, got = association(order['spis'][1], (here, there)), association(order['spis'][0], (there, here))
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    wire.bind((order['interface'], 0))
    macs = b''.join(bytes.fromhex(mac.replace(':', '')) for mac in order['macs'])
    good, bad = 0, []
    for turn in range(order['count']):
        number = order['first'] + turn
        payload = bytes((turn * 31 + index) & 255 for index in range(order['sizes'][turn % len(order['sizes'])]))
        ping = IP(src=order['inner'][1], dst=order['inner'][0]) / ICMP(id=7, seq=turn) / payload
        wire.send(macs + b'\x08\x00' + scapy_peer.seal(sent, number, bytes(ping)))
        why = 'no answer'
        end = time.time() + 5
        while time.time() < end and select.select([wire], [], [], 0.5)[0]:
            frame = wire.recv(65536)
            protocol = frame[23]
            if frame[:6] != macs[6:12] or protocol != (17 if order['natt'] else 50):
                continue
            try:
                inner = IP(scapy_peer.open(got, number, frame[14:14 + int.from_bytes(frame[16:18], 'big')]))
            except Exception as error:
                why = f'scapy does not open it: {error!r}'
                break
            same = (inner.src, inner.dst, inner[ICMP].type, inner[ICMP].seq) == (*order['inner'], 0, turn)
            why = None if same and bytes(inner[ICMP].payload) == payload else f'not the answer: {inner!r}'
            break
        if why:
            bad.append(why)
        else:
            good += 1
    print(json.dumps({'good': good, 'bad': bad}))


if __name__ == '__main__':
    main()
