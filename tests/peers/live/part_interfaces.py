"""Large TCP packets, checksums and VLAN tags that kernels leave to whoever is behind an interface.

    kernel ── TAP ── vesperd, without IPsec ── packet socket ── veth (VLAN) ── kernel
"""
import hashlib
import os
import tempfile
import time

from net import HOST_MAC, Namespace, Vesperd, host

VM_MAC, FAR_MAC = '02:00:00:00:0a:01', '02:00:00:00:0c:01'
ADDRESSES = ('10.9.0.1', '10.9.0.2')

SERVER = '''
import hashlib, socket, sys
listener = socket.create_server((sys.argv[1], 5000))
print('ready', flush=True)
stream, sum = listener.accept()[0], hashlib.sha256()
while data := stream.recv(1 << 20):
    sum.update(data)
print(sum.hexdigest(), flush=True)
'''
CLIENT = '''
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=20) as stream:
    stream.sendall(open(sys.argv[2], 'rb').read())
'''


def transfer(sides, to, path):
    """Sends a file by TCP; the hash of what arrives."""
    server = sides[to].start('python3', '-c', SERVER, ADDRESSES[to], stdout=-1, text=True)
    try:
        server.stdout.readline()
        sides[1 - to]('timeout', '60', 'python3', '-c', CLIENT, ADDRESSES[to], path)
        return server.communicate(timeout=20)[0].strip()
    finally:
        server.kill()
        server.wait()


def passed(report, vlan, megabytes):
    sides = (Namespace(), Namespace())
    here, far = sides
    try:
        here('ip', 'link', 'add', 'wire', 'type', 'veth', 'peer', 'name', 'far', 'netns', far.name)
        here('ip', 'tuntap', 'add', 'vm0', 'mode', 'tap', 'vnet_hdr')
        for ns, name in ((here, 'wire'), (here, 'vm0'), (far, 'far')):
            ns('sysctl', '-qw', f'net.ipv6.conf.{name}.disable_ipv6=1')
        here.batch(f'link set wire up\nlink set vm0 address {VM_MAC}\nlink set vm0 up\naddr add {ADDRESSES[0]}/24 dev vm0\n'
                   f'neigh add {ADDRESSES[1]} lladdr {FAR_MAC} dev vm0\n')
        far('ip', 'link', 'set', 'far', 'address', FAR_MAC, 'up')
        name = 'far'
        if vlan:
            name = f'far.{vlan}'
            if 'Unknown device' in far('ip', 'link', 'add', 'link', 'far', 'name', name, 'type', 'vlan', 'id', vlan,
                                       check=False):
                report.skip('this kernel has no VLAN interfaces')
                return
            far('ip', 'link', 'set', name, 'up')
        far('ip', 'addr', 'add', f'{ADDRESSES[1]}/24', 'dev', name)
        far('ip', 'neigh', 'add', ADDRESSES[0], 'lladdr', VM_MAC, 'dev', name)
        machine = {'name': 'vm', 'mac': VM_MAC, 'require_protection': False,
                   'port': {'tap': {'interface': 'vm0', 'edge': {'neighbours': False}}}}
        machine.update({'vlan': vlan} if vlan else {})
        text = host('a', '192.0.2.1', HOST_MAC, {'af_packet': {'interface': 'wire'}}, [machine])
        with tempfile.NamedTemporaryFile() as file, Vesperd(
                here, text, ready=lambda: 'LOWER_UP' in here('ip', 'link', 'show', 'vm0')) as vesperd:
            data = os.urandom(megabytes << 20)
            file.write(data)
            file.flush()
            for to in (1, 0):
                start = time.time()
                got = transfer(sides, to, file.name)
                report.check(got == hashlib.sha256(data).hexdigest(),
                             f'vlan {vlan}, {megabytes} MB to {"kernel behind the packet socket" if to else "TAP"}: {got}\n'
                             f'{vesperd.output()}')
                report.note(f'VLAN {vlan or "none"}: {megabytes} MB to {("TAP", "packet socket")[to]} in {time.time() - start:.1f} s')
    finally:
        for ns in sides:
            ns.close()


def run(report, _work, quick=False):
    for vlan in (0, 5):
        passed(report, vlan, 5 if quick else 50)
