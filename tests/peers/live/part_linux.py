"""A Linux kernel at the far end: the same `ip xfrm` lines there and here, every suite that both have.

    kernel of this host ── TAP ── vesperd ── packet socket ── tap ── QEMU guest (Linux, XFRM)
"""
import signal
import tempfile
import time
from pathlib import Path

from guest import Guest, aead, enc_auth, state_line
from net import HOST_MAC, Namespace, Vesperd, host, kinds, run as run_command, vesperd_path

VM_MAC = '02:00:00:00:0a:01'
GUEST_MAC = '52:54:00:12:34:56'


HASHES = {'sha1': (20, 96), 'sha256': (32, 128), 'sha384': (48, 192), 'sha512': (64, 256)}


def key(length, seed=0):
    return bytes((index * 11 + 5 + seed * 17) & 255 for index in range(length))


def known():
    """Every suite that both have: name, and the words of `ip xfrm` for one of many keys."""
    for bits in (128, 192, 256):
        length = bits // 8
        for icv in (16, 12, 8):
            yield f'aes{bits}gcm{icv}', lambda n, l=length, i=icv: aead('rfc4106(gcm(aes))', key(l + 4, n), i * 8)
            yield f'aes{bits}ccm{icv}', lambda n, l=length, i=icv: aead('rfc4309(ccm(aes))', key(l + 3, n), i * 8)
        yield f'aes{bits}gmac', lambda n, l=length: aead('rfc4543(gcm(aes))', key(l + 4, n), 128)
    yield 'chacha20poly1305', lambda n: aead('rfc7539esp(chacha20,poly1305)', key(36, n), 128)
    for name, (auth, icv) in HASHES.items():
        ciphers = [('null', 'cipher_null', 0)]
        for bits in (128, 192, 256):
            ciphers += [(f'aes{bits}', 'cbc(aes)', bits // 8), (f'aes{bits}ctr', 'rfc3686(ctr(aes))', bits // 8 + 4)]
        for cipher, words, length in ciphers:
            yield f'{cipher}-{name}', lambda n, h=name, a=auth, i=icv, w=words, l=length: enc_auth(
                w, key(l, n), f'hmac({h})', key(a, n), i)


SUITES = dict(known())
MODES = ('tunnel', 'transport')
CARRIERS = {'v4': {}, 'v4+ESN': dict(esn=True), 'v4+NAT-T': dict(natt=True),
            'v4+NAT-T+ESN': dict(natt=True, esn=True), 'v6': dict(v6=True),
            'v6+ESN': dict(v6=True, esn=True)}
OUTER = {False: ('192.0.2.1', '192.0.2.2'), True: ('fd99::1', 'fd99::2')}
INNER = {False: '10.0.1.1', True: 'fd01::1'}
# In transport mode the machine's own address is outside, so it is on the peer's network.
MACHINE = {False: '192.0.2.11', True: 'fd99::11'}
# The far address that belongs to the suite of a number.
FAR = {('tunnel', False): lambda number: f'10.0.2.{number + 1}', ('tunnel', True): lambda number: f'fd02::{number + 1}',
       ('transport', False): lambda number: f'192.0.2.{100 + number}', ('transport', True): lambda number: f'fd99::1:{number + 1}'}


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
        self.control = tempfile.TemporaryDirectory(prefix='vesper-linux-')
        self.guest = guest = Guest(work, netns=ns.name, tap='wire0', mac=GUEST_MAC, dump=self.capture.name)
        guest.sh('ip addr add 192.0.2.2/24 dev eth0; ip addr add fd99::2/64 dev eth0 nodad', check=True)
        bed = [f'addr add {FAR[mode, v6](number)}/{128 if v6 else 32} dev {"lo" if mode == "tunnel" else "eth0"}'
               + (' nodad' if v6 else '') for mode, v6 in FAR for number in range(len(SUITES))]
        guest.batch(bed + ['route add 10.0.1.0/24 via 192.0.2.1 src 10.0.2.1',
                           'route add fd01::/64 via fd99::1 src fd02::1'])
        # The tunnel's address is found by ARP and NDP; a machine's own address is not, since
        # nothing of a machine that is not protected leaves the host.
        guest.sh(f'ip neigh replace 192.0.2.11 lladdr {VM_MAC} dev eth0; '
                 f'ip neigh replace fd99::11 lladdr {VM_MAC} dev eth0', check=True)
        guest.encap_socket()

    def close(self):
        self.guest.close()
        self.namespace.close()
        self.control.cleanup()

    def install(self, words):
        """Lines of `ip xfrm`, in place of all that were there."""
        self.guest.flush()
        self.guest.batch(line.removeprefix('ip ') for line in words)

    def vesper(self, *words, **more):
        program = str(Path(vesperd_path()).with_name('vesper'))
        return run_command(program, '--socket', self.control.name + '/control', *words, **more)

    def imports(self, state):
        self.vesper('sa', 'import', '--vm', 'vm', input=state + '\n')

    def vesperd(self, v6, states, policies):
        text = f'[daemon]\ncontrol = "{self.control.name}/control"\n' + host('a', OUTER[v6][0], HOST_MAC, {'af_packet': {'interface': 'wire0'}}, [{
            'name': 'vm', 'mac': VM_MAC, 'port': {'tap': {'interface': 'vm0'}},
            'sa': states, 'policy': policies}], frame=9018)
        return Vesperd(self.namespace, text, ready=self.carrier)

    def carrier(self):
        return 'LOWER_UP' in self.namespace('ip', 'link', 'show', 'vm0')

    def ping(self, to, *more, count=3):
        return self.namespace.ping(to, *more, count=count)


def lines(suites, mode, v6=False, esn=False, natt=False, low=0, high=3, spis=(0x1000, 0x2000), seed=0):
    """States and policies of some suites: what the guest gets, what vesperd gets, and the far address of each.

    Each suite protects what goes to an address of its own, and has a pair of keys of its own, made from `seed` on.
    """
    states, guest, here, addresses = [], [], [], []
    for number, suite in enumerate(suites):
        ours, theirs = OUTER[v6]
        inner, far = INNER[v6], FAR['tunnel', v6](number)
        if mode == 'transport':
            ours = inner = MACHINE[v6]
            theirs = far = FAR['transport', v6](number)
        for way, (source, destination) in enumerate(((ours, theirs), (theirs, ours))):
            options = dict(mode=mode, algo=SUITES[suite](seed + 2 * number + way), reqid=number + 1,
                           encap=(4500, 4500) if natt else None)
            options.update(dict(esn_hi=high, esn_lo=low) if esn else dict(window=64))
            states.append(state_line(src=source, dst=destination, spi=spis[way] + 16 * number, **options))
        bits = 128 if v6 else 32
        # In transport mode a policy without a protocol would also hit the outer UDP packet.
        proto = f' proto {58 if v6 else 1}' if natt and mode == 'transport' else ''

        def policy(source, destination, direction, tunnel):
            return (f'ip xfrm policy add src {source}/{bits} dst {destination}/{bits}{proto} dir {direction} '
                    f'tmpl src {tunnel[0]} dst {tunnel[1]} proto esp reqid {number + 1} mode {mode}')

        guest += [policy(far, inner, 'out', (theirs, ours)), policy(inner, far, 'in', (ours, theirs))]
        here += [policy(inner, far, 'out', (ours, theirs)), policy(far, inner, 'in', (theirs, ours))]
        addresses.append(far)
    return states, guest, here, addresses


def directed(states):
    """The lines of vesperd: the first of each pair is what it sends with."""
    return [f'{state} dir {("out", "in")[number % 2]}' for number, state in enumerate(states)]


def cells(report, bed, suites, mode, name, carrier):
    """All suites at once, each to an address of its own: pings have to pass both ways."""
    states, guest, here, addresses = lines(suites, mode, **carrier)
    bed.install(states + guest)
    with bed.vesperd(carrier.get('v6', False), directed(states), here) as vesperd:
        bad = {}
        for suite, far in zip(suites, addresses):
            answers = bed.ping(far, count=2) + bed.ping(far, '-s', '1200', count=1)
            if answers < 3:
                bad[suite] = answers
            report.check(answers == 3, f'{suite} {mode} {name}: {answers} of 3 answers')
        if bad:
            report.note(f'{mode} {name}: {bad}; there {bed.guest.xfrm_stat()}\n{vesperd.stop()}')


def run(report, work, quick=False):
    bed = Bed(work)
    try:
        report.note(f'peer: Linux {bed.guest.sh("uname -r").strip()}')
        report.note(f'{len(SUITES)} suites, {len(MODES)} modes, carried by {", ".join(CARRIERS)}')
        combinations = [(mode, name) for mode in MODES for name in CARRIERS]
        for mode, name in combinations[1::5] if quick else combinations:
            cells(report, bed, list(SUITES), mode, name, CARRIERS[name])
        esn_wrap(report, bed)
        rekey(report, bed)
        resolution(report, bed)
        judged(report, bed)
        sniffed(report, bed)
    finally:
        bed.close()


def esn_wrap(report, bed):
    """Extended sequence numbers across 2^32, both ways, every suite."""
    suites = list(SUITES)
    for mode, carrier in (('tunnel', {}), ('transport', dict(v6=True)), ('tunnel', dict(natt=True))):
        states, guest, here, addresses = lines(suites, mode, esn=True, low=0xfffffffc, high=7, **carrier)
        bed.install(states + guest)
        with bed.vesperd(carrier.get('v6', False), directed(states), here):
            for suite, far in zip(suites, addresses):
                answers = bed.ping(far, count=6)
                report.check(answers == 6, f'{suite} {mode} {carrier} across 2^32: {answers} of 6 answers')
        state = bed.guest.sh('ip -s xfrm state')
        report.check(state.count('oseq-hi 0x8') == len(suites),
                     f'{mode} {carrier}: the high half is 8 after the wrap in {state.count("oseq-hi 0x8")} of {len(suites)}')


def rekey(report, bed):
    """Make before break, in mid-flow: what the peer sends with next is here before it sends, and the other way round."""
    old, guest, here, (far,) = lines(['aes256gcm16'], 'tunnel')
    new, _, _, _ = lines(['chacha20poly1305'], 'tunnel', spis=(0x1001, 0x2001), seed=100)
    bed.install(old + guest)
    with bed.vesperd(False, directed(old), here) as vesperd:
        flow = bed.namespace.start('ping', '-n', '-q', '-c', '300', '-i', '0.01', '-W', '3', far, stdout=-1, text=True)
        outbound, inbound = directed(new)
        for step in (lambda: bed.imports(inbound), lambda: bed.guest.sh(new[0], check=True),
                     lambda: bed.imports(outbound), lambda: bed.guest.sh(new[1], check=True),
                     lambda: bed.vesper('sa', 'del', 'src', OUTER[False][0], 'spi', '0x1000'),
                     lambda: bed.guest.sh('ip xfrm state delete src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x2000', check=True),
                     lambda: bed.vesper('sa', 'del', 'src', OUTER[False][1], 'spi', '0x2000')):
            time.sleep(0.3)
            step()
        out = flow.communicate(timeout=30)[0]
        report.check('300 received' in out, f'rekey in mid-flow: {out}\n{vesperd.output()}')
        left = bed.vesper('sa', 'list', '--xfrm')
        report.check('0x00001001' in left and '0x00002001' in left and '0x00001000' not in left, f'associations left: {left}')


def resolution(report, bed):
    """The peer is found by ARP and NDP, confirmed, and found again when it has moved."""
    for v6 in (False, True):
        states, guest, here, (far,) = lines(['aes128gcm16'], 'tunnel', v6=v6)
        bed.install(states + guest)
        bed.guest.sh('ip neigh flush dev eth0 nud reachable; ip neigh flush dev eth0 nud stale')
        with bed.vesperd(v6, directed(states), here):
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
        states, guest, here, (far,) = lines([suite], 'tunnel', spis=(spi, 0x5000 + number))
        bed.install(states + guest)
        with bed.vesperd(False, directed(states), here):
            answers = bed.ping(far, '-s', '1000', count=20)
            report.check(answers == 20, f'{suite}: {answers} of 20 answers')
            time.sleep(0.2)
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
    states, guest, here, (far,) = lines(['aes256gcm16'], 'tunnel')
    bed.install(states + guest)
    flow = bed.namespace.start('ping', '-n', '-q', '-i', '0.01', far, stdout=-1, text=True)
    try:
        for kind in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
            with bed.vesperd(False, directed(states), here) as vesperd:
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
