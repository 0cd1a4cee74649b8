/*
 * Intel's Multi-Buffer Crypto for IPsec Library, through one of its three interfaces:
 *   direct  one call a packet (GCM only)
 *   job     one job a packet, submitted singly
 *   burst   jobs submitted in bursts of PEER_BURST
 */
#include "peer.h"

#include <intel-ipsec-mb.h>

/* A key in all the forms that the library may want. */
struct expanded {
	struct gcm_key_data gcm;
	DECLARE_ALIGNED(uint32_t encrypt[15 * 4], 16);
	DECLARE_ALIGNED(uint32_t decrypt[15 * 4], 16);
	DECLARE_ALIGNED(uint8_t inner[32], 16);
	DECLARE_ALIGNED(uint8_t outer[32], 16);
	uint8_t chacha[32];
	uint8_t salt[4];
};

enum interface { DIRECT, JOB, BURST };

static IMB_MGR *manager;
static enum interface interface;
static const struct peer_suite *suite;
static struct peer_packet packets[PEER_PACKETS];
static void *memory;
static struct expanded *keys;
static uint8_t tags[PEER_PACKETS][32];

int main(int argc, char **argv)
{
	static const char *const names[] = { "direct", "job", "burst" };
	char name[64];

	for (interface = DIRECT; interface <= BURST; interface++)
		if (argc == 2 && !strcmp(argv[1], names[interface]))
			break;
	if (interface > BURST) {
		fprintf(stderr, "usage: %s direct|job|burst\n", argv[0]);
		return 2;
	}
	manager = alloc_mb_mgr(0);
	if (!manager) {
		fprintf(stderr, "alloc_mb_mgr failed\n");
		return 1;
	}
	init_mb_mgr_auto(manager, NULL);
	/* The library calls its release "v1.3" or "1.3.0-dev". */
	const char *version = imb_get_version_str();

	snprintf(name, sizeof(name), "ipsec-mb-%s-%s", version + (version[0] == 'v'),
		 names[interface]);
	return peer_main(name, "aead");
}

static void expand_hmac(const uint8_t auth_key[32], struct expanded *to)
{
	uint8_t pad[64];

	for (size_t i = 0; i < sizeof(pad); i++)
		pad[i] = 0x36 ^ (i < 32 ? auth_key[i] : 0);
	IMB_SHA256_ONE_BLOCK(manager, pad, to->inner);
	for (size_t i = 0; i < sizeof(pad); i++)
		pad[i] ^= 0x36 ^ 0x5c;
	IMB_SHA256_ONE_BLOCK(manager, pad, to->outer);
}

static void expand(size_t index, struct expanded *to)
{
	struct peer_sa sa;

	peer_make_sa(suite, index, &sa);
	memcpy(to->salt, sa.salt, sizeof(to->salt));
	switch (suite->cipher) {
	case PEER_AES_GCM:
		if (suite->key_len == 16)
			IMB_AES128_GCM_PRE(manager, sa.key, &to->gcm);
		else if (suite->key_len == 24)
			IMB_AES192_GCM_PRE(manager, sa.key, &to->gcm);
		else
			IMB_AES256_GCM_PRE(manager, sa.key, &to->gcm);
		break;
	case PEER_CHACHA20_POLY1305:
		memcpy(to->chacha, sa.key, sizeof(to->chacha));
		break;
	case PEER_AES_CBC_HMAC:
		if (suite->key_len == 16)
			IMB_AES_KEYEXP_128(manager, sa.key, to->encrypt, to->decrypt);
		else
			IMB_AES_KEYEXP_256(manager, sa.key, to->encrypt, to->decrypt);
		expand_hmac(sa.auth_key, to);
		break;
	}
}

static const char *peer_prepare(const struct peer_case *c)
{
	if (interface == DIRECT && c->suite->cipher != PEER_AES_GCM)
		return "the direct interface has GCM only";
	suite = c->suite;
	memory = peer_write_packets(c, packets);
	keys = peer_memory(c->sas * sizeof(*keys));
	if (!memory || !keys) {
		peer_finish();
		return "too little memory";
	}
	for (size_t i = 0; i < c->sas; i++)
		expand(i, &keys[i]);
	return NULL;
}

static void peer_assign(const uint32_t sa[PEER_PACKETS])
{
	for (size_t i = 0; i < PEER_PACKETS; i++) {
		packets[i].sa = sa[i];
		memcpy(packets[i].nonce, keys[sa[i]].salt, 4);
		memcpy(packets[i].nonce + 4, packets[i].esp + 8, 8);
	}
}

static inline bool differ(const uint8_t a[16], const uint8_t b[16])
{
	uint64_t x[2], y[2];

	memcpy(x, a, 16);
	memcpy(y, b, 16);
	return ((x[0] ^ y[0]) | (x[1] ^ y[1])) != 0;
}

/* All ICVs are 16 bytes long. */
static size_t check_tags(size_t from, size_t count)
{
	size_t refused = 0;

	for (size_t i = from; i < from + count; i++) {
		const struct peer_packet *p = &packets[i];

		refused += differ(tags[i], p->esp + 8 + suite->iv_len + p->text_len);
	}
	return refused;
}

static size_t pass_direct(bool out)
{
	aes_gcm_enc_dec_t seal = suite->key_len == 16 ? manager->gcm128_enc :
				 suite->key_len == 24 ? manager->gcm192_enc :
							manager->gcm256_enc;
	aes_gcm_enc_dec_t open = suite->key_len == 16 ? manager->gcm128_dec :
				 suite->key_len == 24 ? manager->gcm192_dec :
							manager->gcm256_dec;
	struct gcm_context_data context;
	size_t refused = 0;

	for (size_t i = 0; i < PEER_PACKETS; i++) {
		struct peer_packet *p = &packets[i];
		uint8_t *text = p->esp + 16, *icv = text + p->text_len;
		const struct gcm_key_data *key = &keys[p->sa].gcm;

		if (out) {
			seal(key, &context, text, text, p->text_len, p->nonce, p->esp, 8, icv, 16);
		} else {
			open(key, &context, text, text, p->text_len, p->nonce, p->esp, 8, tags[i],
			     16);
			refused += differ(tags[i], icv);
		}
	}
	return refused;
}

static inline void fill(IMB_JOB *job, size_t index, bool out)
{
	struct peer_packet *p = &packets[index];
	struct expanded *key = &keys[p->sa];
	size_t header = 8 + suite->iv_len;

	job->cipher_direction = out ? IMB_DIR_ENCRYPT : IMB_DIR_DECRYPT;
	job->chain_order = out ? IMB_ORDER_CIPHER_HASH : IMB_ORDER_HASH_CIPHER;
	job->auth_tag_output = out ? p->esp + header + p->text_len : tags[index];
	job->auth_tag_output_len_in_bytes = 16;
	job->key_len_in_bytes = suite->key_len;
	if (suite->cipher == PEER_AES_CBC_HMAC) {
		job->cipher_mode = IMB_CIPHER_CBC;
		job->hash_alg = IMB_AUTH_HMAC_SHA_256;
		job->enc_keys = key->encrypt;
		job->dec_keys = key->decrypt;
		job->u.HMAC._hashed_auth_key_xor_ipad = key->inner;
		job->u.HMAC._hashed_auth_key_xor_opad = key->outer;
		job->src = p->esp;
		job->dst = p->esp + header;
		job->cipher_start_src_offset_in_bytes = header;
		job->msg_len_to_cipher_in_bytes = p->text_len;
		job->hash_start_src_offset_in_bytes = 0;
		job->msg_len_to_hash_in_bytes = header + p->text_len;
		job->iv = p->esp + 8;
		job->iv_len_in_bytes = 16;
		return;
	}
	job->src = job->dst = p->esp + header;
	job->cipher_start_src_offset_in_bytes = 0;
	job->msg_len_to_cipher_in_bytes = p->text_len;
	job->hash_start_src_offset_in_bytes = 0;
	job->msg_len_to_hash_in_bytes = p->text_len;
	job->iv = p->nonce;
	job->iv_len_in_bytes = 12;
	if (suite->cipher == PEER_AES_GCM) {
		job->cipher_mode = IMB_CIPHER_GCM;
		job->hash_alg = IMB_AUTH_AES_GMAC;
		job->enc_keys = job->dec_keys = &key->gcm;
		job->u.GCM.aad = p->esp;
		job->u.GCM.aad_len_in_bytes = 8;
	} else {
		job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
		job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
		job->enc_keys = job->dec_keys = key->chacha;
		job->u.CHACHA20_POLY1305.aad = p->esp;
		job->u.CHACHA20_POLY1305.aad_len_in_bytes = 8;
	}
}

static inline size_t failed(const IMB_JOB *job)
{
	return job->status != IMB_STATUS_COMPLETED;
}

static size_t pass_job(bool out)
{
	size_t refused = 0;
	IMB_JOB *job;

	for (size_t i = 0; i < PEER_PACKETS; i++) {
		job = IMB_GET_NEXT_JOB(manager);
		fill(job, i, out);
		for (job = IMB_SUBMIT_JOB_NOCHECK(manager); job;
		     job = IMB_GET_COMPLETED_JOB(manager))
			refused += failed(job);
	}
	while ((job = IMB_FLUSH_JOB(manager)))
		refused += failed(job);
	return out ? refused : refused + check_tags(0, PEER_PACKETS);
}

static size_t pass_burst(bool out)
{
	IMB_JOB *jobs[PEER_BURST];
	size_t refused = 0;

	for (size_t from = 0; from < PEER_PACKETS; from += PEER_BURST) {
		uint32_t done, more;

		while (IMB_GET_NEXT_BURST(manager, PEER_BURST, jobs) < PEER_BURST)
			IMB_FLUSH_BURST(manager, PEER_BURST, jobs);
		for (size_t i = 0; i < PEER_BURST; i++) {
			fill(jobs[i], from + i, out);
#if IMB_VERSION_NUM >= IMB_VERSION(2, 0, 0)
			/* Since release 2.0 the burst interface wants this for every job. */
			imb_set_session(manager, jobs[i]);
#endif
		}
		done = IMB_SUBMIT_BURST_NOCHECK(manager, PEER_BURST, jobs);
		for (uint32_t i = 0; i < done; i++)
			refused += failed(jobs[i]);
		while (done < PEER_BURST) {
			more = IMB_FLUSH_BURST(manager, PEER_BURST - done, jobs);
			for (uint32_t i = 0; i < more; i++)
				refused += failed(jobs[i]);
			if (!more)
				return PEER_PACKETS;
			done += more;
		}
		if (!out)
			refused += check_tags(from, PEER_BURST);
	}
	return refused;
}

static size_t peer_pass(bool out)
{
	switch (interface) {
	case DIRECT:
		return pass_direct(out);
	case JOB:
		return pass_job(out);
	default:
		return pass_burst(out);
	}
}

static uint64_t peer_digest(bool sealed)
{
	return peer_digest_packets(suite, packets, sealed);
}

static void peer_finish(void)
{
	free(memory);
	free(keys);
	memory = keys = NULL;
}
