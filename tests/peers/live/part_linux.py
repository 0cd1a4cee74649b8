"""A Linux kernel at the far end: the same `ip xfrm` lines there and here, every suite that both have.

    kernel of this host ── TAP ── vesperd ── packet socket ── tap ── QEMU guest (Linux, XFRM)
"""
import itertools
import signal
import tempfile
import time

from guest import Guest, aead, enc_auth, state_line
from net import HOST_MAC, Namespace, Vesperd, host, kinds, run as run_command

VM_MAC = '02:00:00:00:0a:01'
GUEST_MAC = '52:54:00:12:34:56'


def key(length):
    return bytes((index * 11 + 5) & 255 for index in range(length))


SUITES = {
    'aes128gcm16': aead('rfc4106(gcm(aes))', key(20), 128),
    'aes256gcm16': aead('rfc4106(gcm(aes))', key(36), 128),
    'aes128gcm12': aead('rfc4106(gcm(aes))', key(20), 96),
    'aes256gcm8': aead('rfc4106(gcm(aes))', key(36), 64),
    'chacha20poly1305': aead('rfc7539esp(chacha20,poly1305)', key(36), 128),
    'aes128gmac': aead('rfc4543(gcm(aes))', key(20), 128),
    'aes128ccm16': aead('rfc4309(ccm(aes))', key(19), 128),
    'aes128-sha256': enc_auth('cbc(aes)', key(16), 'hmac(sha256)', key(32), 128),
    'aes256-sha512': enc_auth('cbc(aes)', key(32), 'hmac(sha512)', key(64), 256),
    'aes128ctr-sha256': enc_auth('rfc3686(ctr(aes))', key(20), 'hmac(sha256)', key(32), 128),
    'null-sha256': enc_auth('cipher_null', b'', 'hmac(sha256)', key(32), 128),
}
MODES = ('tunnel', 'transport')
CARRIERS = {'v4': {}, 'v4+ESN': dict(esn=True), 'v4+NAT-T': dict(natt=True),
            'v4+NAT-T+ESN': dict(natt=True, esn=True), 'v6': dict(v6=True),
            'v6+ESN': dict(v6=True, esn=True)}
OUTER = {False: ('192.0.2.1', '192.0.2.2'), True: ('fd99::1', 'fd99::2')}
INNER = {False: ('10.0.1.1', '10.0.2.1'), True: ('fd01::1', 'fd02::1')}
# In transport mode the machine's own address is outside, so it is on the peer's network.
MACHINE = {False: '192.0.2.11', True: 'fd99::11'}


class Bed:
    """Everything but vesperd, which each cell starts with its own associations."""

    def __init__(self, work):
        self.namespace = ns = Namespace()
        ns('ip', 'tuntap', 'add', 'wire0', 'mode', 'tap')
        ns('sysctl', '-qw', 'net.ipv6.conf.wire0.disable_ipv6=1')
        ns('ip', 'link', 'set', 'wire0', 'up')
        ns('ip', 'tuntap', 'add', 'vm0', 'mode', 'tap', 'vnet_hdr')
        ns.batch(f'''link set vm0 address {VM_MAC}
link set vm0 up
addr add 10.0.1.1/24 dev vm0
addr add 192.0.2.11/24 dev vm0
addr add fd01::1/64 dev vm0 nodad
addr add fd99::11/64 dev vm0 nodad
route add 10.0.2.0/24 dev vm0 src 10.0.1.1
route add fd02::/64 dev vm0 src fd01::1
''')
        self.capture = tempfile.NamedTemporaryFile(suffix='.pcap')
        self.guest = guest = Guest(work, netns=ns.name, tap='wire0', mac=GUEST_MAC, dump=self.capture.name)
        guest.sh('ip addr add 192.0.2.2/24 dev eth0; ip addr add fd99::2/64 dev eth0 nodad', check=True)
        guest.sh('ip addr add 10.0.2.1/32 dev lo; ip addr add fd02::1/128 dev lo', check=True)
        guest.sh('ip route add 10.0.1.0/24 via 192.0.2.1 src 10.0.2.1; '
                 'ip -6 route add fd01::/64 via fd99::1 src fd02::1', check=True)
        # The tunnel's address is found by ARP and NDP; a machine's own address is not, since
        # nothing of a machine that is not protected leaves the host.
        guest.sh(f'ip neigh replace 192.0.2.11 lladdr {VM_MAC} dev eth0; '
                 f'ip neigh replace fd99::11 lladdr {VM_MAC} dev eth0', check=True)
        guest.encap_socket()

    def close(self):
        self.guest.close()
        self.namespace.close()

    def vesperd(self, v6, states, policies):
        text = host('a', OUTER[v6][0], HOST_MAC, {'af_packet': {'interface': 'wire0'}}, [{
            'name': 'vm', 'mac': VM_MAC, 'port': {'tap': {'interface': 'vm0'}},
            'sa': states, 'policy': policies}], frame=9018)
        return Vesperd(self.namespace, text, ready=self.carrier)

    def carrier(self):
        return 'LOWER_UP' in self.namespace('ip', 'link', 'show', 'vm0')

    def ping(self, to, *more, count=3):
        return self.namespace.ping(to, *more, count=count)


def lines(suite, mode, v6=False, esn=False, natt=False, low=0, high=3, spis=(0x1000, 0x2000)):
    """States and policies: what the guest gets, and what vesperd gets."""
    ours, theirs = OUTER[v6]
    inner, far = INNER[v6]
    if mode == 'transport':
        ours = inner = MACHINE[v6]
        far = theirs
    options = dict(mode=mode, algo=SUITES[suite], encap=(4500, 4500) if natt else None)
    options.update(dict(esn_hi=high, esn_lo=low) if esn else dict(window=64))
    states = [state_line(src=ours, dst=theirs, spi=spis[0], **options),
              state_line(src=theirs, dst=ours, spi=spis[1], **options)]
    bits = 128 if v6 else 32
    # In transport mode a policy without a protocol would also hit the outer UDP packet.
    proto = f' proto {58 if v6 else 1}' if natt and mode == 'transport' else ''

    def policy(source, destination, direction, tunnel):
        return (f'ip xfrm policy add src {source}/{bits} dst {destination}/{bits}{proto} dir {direction} '
                f'tmpl src {tunnel[0]} dst {tunnel[1]} proto esp reqid 1 mode {mode}')

    guest = [policy(far, inner, 'out', (theirs, ours)), policy(inner, far, 'in', (ours, theirs))]
    here = [policy(inner, far, 'out', (ours, theirs)), policy(far, inner, 'in', (theirs, ours))]
    return states, guest, here, far


def cell(bed, suite, mode, **carrier):
    """None if pings pass both ways, else what is wrong."""
    states, guest, here, far = lines(suite, mode, **carrier)
    bed.guest.flush()
    bed.guest.sh('\n'.join(states + guest), check=True)
    directed = [f'{states[0]} dir out', f'{states[1]} dir in']
    with bed.vesperd(carrier.get('v6', False), directed, here) as vesperd:
        for size in (56, 1200):
            if (answers := bed.ping(far, '-s', size)) < 3:
                return (f'{answers} of 3 answers at {size} bytes; there {bed.guest.xfrm_stat()}\n'
                        f'{vesperd.stop()}')
    return None


def run(report, work, quick=False):
    bed = Bed(work)
    try:
        report.note(f'peer: Linux {bed.guest.sh("uname -r").strip()}')
        cells = list(itertools.product(SUITES, MODES, CARRIERS))
        if quick:
            cells = [cell for index, cell in enumerate(cells) if index % 7 == 0]
        for suite, mode, carrier in cells:
            wrong = cell(bed, suite, mode, **CARRIERS[carrier])
            report.check(wrong is None, f'{suite} {mode} {carrier}: {wrong}')
        esn_wrap(report, bed)
        rekey(report, bed)
        resolution(report, bed)
        judged(report, bed)
        sniffed(report, bed)
    finally:
        bed.close()


def esn_wrap(report, bed):
    """Extended sequence numbers across 2^32, both ways."""
    for suite in ('aes256gcm16', 'aes128-sha256'):
        states, guest, here, far = lines(suite, 'tunnel', esn=True, low=0xfffffffc, high=7)
        bed.guest.flush()
        bed.guest.sh('\n'.join(states + guest), check=True)
        directed = [f'{states[0]} dir out', f'{states[1]} dir in']
        with bed.vesperd(False, directed, here):
            answers = bed.ping(far, count=10)
            report.check(answers == 10, f'{suite} across 2^32: {answers} of 10 answers')
        state = bed.guest.sh('ip -s xfrm state')
        report.check('oseq-hi 0x8' in state, f'{suite}: the high half is not 8 after the wrap\n{state}')


def rekey(report, bed):
    """A second pair of associations beside the first; the guest changes over in mid-flow."""
    old, guest, here, far = lines('aes256gcm16', 'tunnel')
    new, _, _, _ = lines('aes128gcm16', 'tunnel', spis=(0x1001, 0x2001))
    bed.guest.flush()
    bed.guest.sh('\n'.join(old + guest), check=True)
    # vesperd has both inbound ones, and sends with the one that was added last.
    directed = [f'{old[0]} dir out', f'{old[1]} dir in', f'{new[0]} dir out', f'{new[1]} dir in']
    with bed.vesperd(False, directed, here):
        bed.guest.sh(new[0], check=True)
        flow = bed.namespace.start('ping', '-n', '-q', '-c', '200', '-i', '0.01', '-W', '3', far,
                                   stdout=-1, text=True)
        time.sleep(0.6)
        bed.guest.sh(new[1], check=True)
        time.sleep(0.3)
        bed.guest.sh('ip xfrm state delete src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x2000', check=True)
        out = flow.communicate(timeout=30)[0]
        report.check('200 received' in out, f'rekey in mid-flow: {out}')


def resolution(report, bed):
    """The peer is found by ARP and NDP, confirmed, and found again when it has moved."""
    for v6 in (False, True):
        states, guest, here, far = lines('aes128gcm16', 'tunnel', v6=v6)
        bed.guest.flush()
        bed.guest.sh('\n'.join(states + guest), check=True)
        bed.guest.sh('ip neigh flush dev eth0 nud reachable; ip neigh flush dev eth0 nud stale')
        directed = [f'{states[0]} dir out', f'{states[1]} dir in']
        with bed.vesperd(v6, directed, here):
            # Not even the first packet is lost: it waits for the answer.
            report.check(bed.ping(far, count=3) == 3, f'neighbours, v6 {v6}: the first packets are lost')
    bed.guest.sh(f'ip neigh replace 192.0.2.11 lladdr {VM_MAC} dev eth0; '
                 f'ip neigh replace fd99::11 lladdr {VM_MAC} dev eth0', check=True)


TSHARK = {'aes128gcm16': ('AES-GCM with 16 octet ICV [RFC4106]', 20, 'NULL', 0),
          'aes256gcm16': ('AES-GCM with 16 octet ICV [RFC4106]', 36, 'NULL', 0),
          'aes128gcm12': ('AES-GCM with 12 octet ICV [RFC4106]', 20, 'NULL', 0),
          'aes256gcm8': ('AES-GCM with 8 octet ICV [RFC4106]', 36, 'NULL', 0),
          'aes128-sha256': ('AES-CBC [RFC3602]', 16, 'HMAC-SHA-256-128 [RFC4868]', 32),
          'aes128ctr-sha256': ('AES-CTR [RFC3686]', 20, 'HMAC-SHA-256-128 [RFC4868]', 32)}


def judged(report, bed):
    """What tshark says about our packets, with the keys: nothing malformed, every ICV good."""
    for number, (suite, (cipher, length, auth, auth_length)) in enumerate(TSHARK.items()):
        spi = 0x4000 + number
        states, guest, here, far = lines(suite, 'tunnel', spis=(spi, 0x5000 + number))
        bed.guest.flush()
        bed.guest.sh('\n'.join(states + guest), check=True)
        with bed.vesperd(False, [f'{states[0]} dir out', f'{states[1]} dir in'], here):
            bed.ping(far, '-s', '1000', count=20)
        auth_key = f'0x{key(auth_length).hex()}' if auth_length else ''
        row = f'"IPv4","192.0.2.1","192.0.2.2","0x{spi:x}","{cipher}","0x{key(length).hex()}","{auth}","{auth_key}"'
        out = run_command('tshark', '-r', bed.capture.name, '-o', 'esp.enable_encryption_decode:TRUE',
                          '-o', 'esp.enable_authentication_check:TRUE', '-o', f'uat:esp_sa:{row}',
                          '-Y', f'esp.spi == {spi:#x}', '-T', 'fields', '-e', 'esp.icv_good', '-e', 'esp.protocol',
                          '-e', 'icmp.type', '-e', '_ws.malformed', '-e', 'ip.checksum.status')
        rows = [line.split('\t') for line in out.splitlines() if line and line[0] in '01TF']
        good = [row for row in rows if row[0] in ('1', 'True') and row[1] == '0x04' and row[2] == '8' and not row[3]]
        report.check(len(rows) == 20 and len(good) == 20, f'tshark about {suite}: {len(good)} of 20 good\n{out[:600]}')


def sniffed(report, bed):
    """Nothing in clear text outside: start, stop, kill, and no association at all."""
    states, guest, here, far = lines('aes256gcm16', 'tunnel')
    bed.guest.flush()
    bed.guest.sh('\n'.join(states + guest), check=True)
    directed = [f'{states[0]} dir out', f'{states[1]} dir in']
    flow = bed.namespace.start('ping', '-n', '-q', '-i', '0.01', far, stdout=-1, text=True)
    try:
        for kind in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
            with bed.vesperd(False, directed, here) as vesperd:
                time.sleep(0.7)
                vesperd.stop(kind)
        with bed.vesperd(False, [], here):
            time.sleep(0.5)
        with bed.vesperd(False, [], []):
            time.sleep(0.5)
    finally:
        flow.send_signal(signal.SIGINT)
        flow.communicate(timeout=10)
        time.sleep(0.2)
    # QEMU has written down every frame since the guest was started.
    seen = kinds(bed.capture.name, but_from=GUEST_MAC)
    report.check(seen.get('esp', 0) > 500, f'the sniffer saw little: {seen}')
    report.check(seen.get('clear', 0) == 0, f'clear text outside: {seen}')
    report.note(f'sniffer: {seen}')
