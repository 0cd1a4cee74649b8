/*
 * DPDK's librte_ipsec: ESP tunnel mode over IPv4, 64-bit sequence numbers, a window of
 * 1,024, bursts of 32 packet buffers, on one of its software crypto devices in one of two
 * ways:
 *   lookaside  crypto operations enqueued to the device and dequeued from it
 *   cpu        synchronous, RTE_SECURITY_ACTION_TYPE_CPU_CRYPTO
 */
#define _GNU_SOURCE
#include "peer.h"

#include <sched.h>

#include <rte_bus_vdev.h>
#include <rte_cryptodev.h>
#include <rte_eal.h>
#include <rte_ip.h>
#include <rte_ipsec.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_security.h>
#include <rte_version.h>

#define BURST 32
#define WINDOW 1024
#define OUTER 20
#define IV_OFFSET (sizeof(struct rte_crypto_op) + sizeof(struct rte_crypto_sym_op))

static uint8_t device;
static bool synchronous;
static const struct peer_case *current;
static struct rte_mempool *buffers, *operations, *sessions;
static struct rte_mbuf *packets[PEER_PACKETS];
static struct rte_crypto_op *ops[PEER_PACKETS];
static uint32_t owner[PEER_PACKETS];
static struct rte_ipsec_session *outbound, *inbound;

static bool start_eal(const char *driver, bool hugepages);
static bool start_device(void);

int main(int argc, char **argv)
{
	char name[96];

	if (argc != 4) {
		fprintf(stderr, "usage: %s aesni_gcm|aesni_mb lookaside|cpu huge|nohuge\n", argv[0]);
		return 2;
	}
	synchronous = !strcmp(argv[2], "cpu");
	bool hugepages = !strcmp(argv[3], "huge");

	if (!start_eal(argv[1], hugepages) || !start_device())
		return 1;
	snprintf(name, sizeof(name), "dpdk-%u.%02u-%s-%s%s", RTE_VER_YEAR, RTE_VER_MONTH, argv[1],
		 argv[2], hugepages ? "" : "-nohuge");
	return peer_main(name, "esp");
}

/* The core that the process was put on before it was started. */
static int own_core(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		return -1;
	for (int core = 0; core < CPU_SETSIZE; core++)
		if (CPU_ISSET(core, &set))
			return core;
	return -1;
}

static bool start_eal(const char *driver, bool hugepages)
{
	char vdev[64], lcores[32];
	char *with_hugepages[] = { "dpdk", vdev, lcores, "--no-pci", "--no-telemetry", "--in-memory" };
	char *without[] = { "dpdk", vdev, lcores, "--no-pci", "--no-telemetry", "--no-shconf",
			    "--no-huge", "-m1024" };

	snprintf(vdev, sizeof(vdev), "--vdev=crypto_%s", driver);
	snprintf(lcores, sizeof(lcores), "--lcores=0@%d", own_core());
	int used = hugepages ? rte_eal_init(RTE_DIM(with_hugepages), with_hugepages) :
			       rte_eal_init(RTE_DIM(without), without);

	return used >= 0 && rte_cryptodev_count() == 1;
}

static bool start_device(void)
{
	struct rte_cryptodev_config config = { .socket_id = SOCKET_ID_ANY, .nb_queue_pairs = 1 };
	struct rte_cryptodev_qp_conf queue = { .nb_descriptors = 2 * PEER_PACKETS };

	operations = rte_crypto_op_pool_create("operations", RTE_CRYPTO_OP_TYPE_SYMMETRIC,
					       2 * PEER_PACKETS - 1, 0, 32, SOCKET_ID_ANY);
	return operations && !rte_cryptodev_configure(device, &config) &&
	       !rte_cryptodev_queue_pair_setup(device, 0, &queue, SOCKET_ID_ANY) &&
	       !rte_cryptodev_start(device);
}

/* The transforms of an association; the second is used by composed suites only. */
static void set_transforms(const struct peer_sa *sa, bool out, struct rte_crypto_sym_xform x[2])
{
	const struct peer_suite *suite = current->suite;

	memset(x, 0, 2 * sizeof(x[0]));
	if (suite->cipher != PEER_AES_CBC_HMAC) {
		bool gcm = suite->cipher == PEER_AES_GCM;

		x[0].type = RTE_CRYPTO_SYM_XFORM_AEAD;
		x[0].aead.op = out ? RTE_CRYPTO_AEAD_OP_ENCRYPT : RTE_CRYPTO_AEAD_OP_DECRYPT;
		x[0].aead.algo = gcm ? RTE_CRYPTO_AEAD_AES_GCM : RTE_CRYPTO_AEAD_CHACHA20_POLY1305;
		x[0].aead.key.data = sa->key;
		x[0].aead.key.length = (uint16_t)suite->key_len;
		x[0].aead.iv.offset = IV_OFFSET;
		x[0].aead.iv.length = 12;
		x[0].aead.digest_length = (uint16_t)suite->icv_len;
		x[0].aead.aad_length = 12;
		return;
	}
	struct rte_crypto_sym_xform *cipher = &x[out ? 0 : 1], *auth = &x[out ? 1 : 0];

	cipher->type = RTE_CRYPTO_SYM_XFORM_CIPHER;
	cipher->cipher.op = out ? RTE_CRYPTO_CIPHER_OP_ENCRYPT : RTE_CRYPTO_CIPHER_OP_DECRYPT;
	cipher->cipher.algo = RTE_CRYPTO_CIPHER_AES_CBC;
	cipher->cipher.key.data = sa->key;
	cipher->cipher.key.length = (uint16_t)suite->key_len;
	cipher->cipher.iv.offset = IV_OFFSET;
	cipher->cipher.iv.length = 16;
	auth->type = RTE_CRYPTO_SYM_XFORM_AUTH;
	auth->auth.op = out ? RTE_CRYPTO_AUTH_OP_GENERATE : RTE_CRYPTO_AUTH_OP_VERIFY;
	auth->auth.algo = RTE_CRYPTO_AUTH_SHA256_HMAC;
	auth->auth.key.data = sa->auth_key;
	auth->auth.key.length = (uint16_t)suite->auth_key_len;
	auth->auth.digest_length = (uint16_t)suite->icv_len;
	x[0].next = &x[1];
}

/* Makes one association of one direction; NULL or the reason why not. */
static const char *make_session(size_t index, bool out, struct rte_ipsec_session *session)
{
	struct rte_ipv4_hdr outer = {
		.version_ihl = RTE_IPV4_VHL_DEF,
		.time_to_live = 64,
		.next_proto_id = IPPROTO_ESP,
		.src_addr = RTE_BE32(RTE_IPV4(10, 0, 0, 1)),
		.dst_addr = RTE_BE32(RTE_IPV4(10, 0, 0, 2)),
	};
	struct rte_crypto_sym_xform transforms[2];
	struct rte_ipsec_sa_prm parameters;
	struct peer_sa sa;

	peer_make_sa(current->suite, index, &sa);
	set_transforms(&sa, out, transforms);
	memset(&parameters, 0, sizeof(parameters));
	parameters.userdata = index + 1;
	parameters.ipsec_xform.spi = sa.spi;
	/* The salt goes into the nonce as it lies in memory. */
	memcpy(&parameters.ipsec_xform.salt, sa.salt, sizeof(sa.salt));
	parameters.ipsec_xform.options.esn = 1;
	parameters.ipsec_xform.direction = out ? RTE_SECURITY_IPSEC_SA_DIR_EGRESS :
						 RTE_SECURITY_IPSEC_SA_DIR_INGRESS;
	parameters.ipsec_xform.proto = RTE_SECURITY_IPSEC_SA_PROTO_ESP;
	parameters.ipsec_xform.mode = RTE_SECURITY_IPSEC_SA_MODE_TUNNEL;
	parameters.ipsec_xform.tunnel.type = RTE_SECURITY_IPSEC_TUNNEL_IPV4;
	parameters.ipsec_xform.replay_win_sz = out ? 0 : WINDOW;
	parameters.crypto_xform = transforms;
	parameters.tun.hdr = &outer;
	parameters.tun.hdr_len = OUTER;
	parameters.tun.next_proto = IPPROTO_IPIP;

	int size = rte_ipsec_sa_size(&parameters);

	if (size < 0)
		return "librte_ipsec has no such suite";
	session->sa = rte_zmalloc(NULL, (size_t)size, RTE_CACHE_LINE_SIZE);
	if (!session->sa)
		return "too little memory for the associations";
	if (rte_ipsec_sa_init(session->sa, &parameters, (uint32_t)size) < 0)
		return "librte_ipsec has no such suite";
	session->type = synchronous ? RTE_SECURITY_ACTION_TYPE_CPU_CRYPTO :
				      RTE_SECURITY_ACTION_TYPE_NONE;
	session->crypto.dev_id = device;
	session->crypto.ses = rte_cryptodev_sym_session_create(device, transforms, sessions);
	if (!session->crypto.ses)
		return "the crypto device refused the session";
	if (rte_ipsec_session_prepare(session))
		return "librte_ipsec refused the session";
	return NULL;
}

static void write_packets(void)
{
	for (size_t i = 0; i < PEER_PACKETS; i++) {
		uint16_t length = (uint16_t)current->lengths[i];

		peer_write_inner(current, i, (uint8_t *)rte_pktmbuf_append(packets[i], length));
		packets[i]->l2_len = 0;
		packets[i]->l3_len = OUTER;
	}
}

static const char *make_packets(void)
{
	size_t longest = 0;

	for (size_t i = 0; i < PEER_PACKETS; i++)
		longest = RTE_MAX(longest, current->lengths[i]);
	/* At least the 2 KiB that are usual; room for trailer and ICV behind longer packets. */
	uint16_t room = (uint16_t)(RTE_PKTMBUF_HEADROOM + RTE_MAX(longest + 64, (size_t)2048));

	buffers = rte_pktmbuf_pool_create("buffers", 2 * PEER_PACKETS - 1, 0, 0, room,
					  SOCKET_ID_ANY);
	if (!buffers || rte_pktmbuf_alloc_bulk(buffers, packets, PEER_PACKETS) ||
	    (!synchronous && !rte_crypto_op_bulk_alloc(operations, RTE_CRYPTO_OP_TYPE_SYMMETRIC,
						       ops, PEER_PACKETS)))
		return "too little memory for the packets";
	write_packets();
	return NULL;
}

static const char *peer_prepare(const struct peer_case *c)
{
	uint32_t session_size = rte_cryptodev_sym_get_private_session_size(device);
	const char *reason;

	current = c;
	sessions = rte_cryptodev_sym_session_pool_create("sessions", 2 * (uint32_t)c->sas + 63,
							 session_size, 0, 0, SOCKET_ID_ANY);
	outbound = rte_zmalloc(NULL, c->sas * sizeof(*outbound), RTE_CACHE_LINE_SIZE);
	inbound = rte_zmalloc(NULL, c->sas * sizeof(*inbound), RTE_CACHE_LINE_SIZE);
	reason = sessions && outbound && inbound ? make_packets() :
						   "too little memory for the associations";
	for (size_t i = 0; !reason && i < c->sas; i++) {
		reason = make_session(i, true, &outbound[i]);
		if (!reason)
			reason = make_session(i, false, &inbound[i]);
	}
	if (reason)
		peer_finish();
	return reason;
}

static void peer_assign(const uint32_t sa[PEER_PACKETS])
{
	memcpy(owner, sa, sizeof(owner));
}

/* The packets from `from` on that belong to one association, within the burst. */
static inline size_t run_length(size_t from, size_t end)
{
	size_t to = from + 1;

	while (to < end && owner[to] == owner[from])
		to++;
	return to - from;
}

static inline size_t finish_burst(struct rte_ipsec_session *of, size_t from, size_t end)
{
	size_t refused = 0, length;

	for (; from < end; from += length) {
		length = run_length(from, end);
		refused += length - rte_ipsec_pkt_process(&of[owner[from]], packets + from, length);
	}
	return refused;
}

static size_t pass_synchronous(struct rte_ipsec_session *of)
{
	size_t refused = 0, length;

	for (size_t burst = 0; burst < PEER_PACKETS; burst += BURST)
		for (size_t i = burst; i < burst + BURST; i += length) {
			struct rte_ipsec_session *session = &of[owner[i]];

			length = run_length(i, burst + BURST);
			uint16_t ready = rte_ipsec_pkt_cpu_prepare(session, packets + i,
								   (uint16_t)length);

			refused += length - rte_ipsec_pkt_process(session, packets + i, ready);
		}
	return refused;
}

static size_t pass_lookaside(struct rte_ipsec_session *of)
{
	struct rte_crypto_op *done[BURST];
	size_t refused = 0, length;

	for (size_t burst = 0; burst < PEER_PACKETS; burst += BURST) {
		size_t end = burst + BURST;

		for (size_t i = burst; i < end; i += length) {
			length = run_length(i, end);
			refused += length - rte_ipsec_pkt_crypto_prepare(&of[owner[i]], packets + i,
									 ops + i, (uint16_t)length);
		}
		uint16_t queued = rte_cryptodev_enqueue_burst(device, 0, ops + burst, BURST);
		uint16_t got = 0;

		if (queued < BURST)
			return PEER_PACKETS;
		while (got < queued)
			got += rte_cryptodev_dequeue_burst(device, 0, done + got, queued - got);
		for (size_t i = 0; i < BURST; i++)
			packets[burst + i] = done[i]->sym->m_src;
		refused += finish_burst(of, burst, end);
	}
	return refused;
}

static size_t peer_pass(bool out)
{
	struct rte_ipsec_session *of = out ? outbound : inbound;

	return synchronous ? pass_synchronous(of) : pass_lookaside(of);
}

static uint64_t peer_digest(bool sealed)
{
	size_t skip = sealed ? OUTER : 0;
	uint64_t hash = PEER_DIGEST_EMPTY;

	/* The device may hand packets back in another order; buffers do not move. */
	for (size_t i = 0; i < PEER_PACKETS; i++)
		hash = peer_hash(hash, rte_pktmbuf_mtod_offset(packets[i], uint8_t *, skip),
				 rte_pktmbuf_pkt_len(packets[i]) - skip);
	return hash;
}

static void free_sessions(struct rte_ipsec_session *of)
{
	for (size_t i = 0; of && i < current->sas; i++) {
		if (of[i].crypto.ses)
			rte_cryptodev_sym_session_free(device, of[i].crypto.ses);
		rte_free(of[i].sa);
	}
	rte_free(of);
}

static void peer_finish(void)
{
	free_sessions(outbound);
	free_sessions(inbound);
	outbound = inbound = NULL;
	if (packets[0])
		rte_pktmbuf_free_bulk(packets, PEER_PACKETS);
	if (ops[0])
		rte_mempool_put_bulk(operations, (void **)ops, PEER_PACKETS);
	memset(packets, 0, sizeof(packets));
	memset(ops, 0, sizeof(ops));
	rte_mempool_free(buffers);
	rte_mempool_free(sessions);
	buffers = sessions = NULL;
}
