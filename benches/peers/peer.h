/*
 * What every peer's program shares: the recipe of keys and packets, and the line protocol
 * by which vesper-bench drives it. README.md beside this file describes both.
 *
 * A program includes this file once, defines the functions under "to be defined by the
 * program" and calls peer_main.
 */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <x86intrin.h>

#define PEER_PACKETS 1024
#define PEER_BURST 64
#define PEER_LINE 64
#define PEER_HUGE_PAGE (2UL << 20)

enum peer_cipher { PEER_AES_GCM, PEER_CHACHA20_POLY1305, PEER_AES_CBC_HMAC };

struct peer_suite {
	const char *name;
	enum peer_cipher cipher;
	size_t key_len;
	size_t salt_len;
	size_t auth_key_len;
	size_t iv_len;
	size_t icv_len;
};

/* Keys of one association, and the SPI that goes with it at the level of ESP. */
struct peer_sa {
	uint8_t key[32];
	uint8_t salt[4];
	uint8_t auth_key[64];
	uint32_t spi;
};

/* One packet at the level of the AEAD: SPI, sequence number, IV, text, ICV. */
struct peer_packet {
	uint8_t *esp;
	uint32_t text_len;
	uint32_t sa;
	uint8_t nonce[12];
};

struct peer_case {
	const struct peer_suite *suite;
	size_t lengths[PEER_PACKETS];
	size_t sas;
	/* Which association each packet of the next pass belongs to. */
	uint32_t *order;
	size_t turn;
	/* The program chooses IVs itself, so that what it seals can not be compared. */
	bool own_ivs;
};

/* ---- to be defined by the program ---- */

/* Makes keys and packets; NULL, or the reason why it takes no part in the case. */
static const char *peer_prepare(const struct peer_case *c);
/* Called before each pass out, untimed: packet i belongs to association sa[i] from now on. */
static void peer_assign(const uint32_t sa[PEER_PACKETS]);
/* Seals or opens all packets; how many were refused. The only part that is timed. */
static size_t peer_pass(bool out);
/* The hash of all packets from the SPI on, or of the clear text when they are open. */
static uint64_t peer_digest(bool sealed);
/* Frees what peer_prepare made. */
static void peer_finish(void);

/* ---- the recipe ---- */

#define PEER_STREAM_KEYS (1ULL << 32)
#define PEER_STREAM_TEXT (2ULL << 32)
#define PEER_STREAM_ORDER (3ULL << 32)
#define PEER_STREAM_IMIX (4ULL << 32)

/* SplitMix64. */
static inline uint64_t peer_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static inline void peer_fill(uint64_t *state, uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i += 8) {
		uint64_t word = peer_next(state);

		memcpy(bytes + i, &word, length - i < 8 ? length - i : 8);
	}
}

#define PEER_SHUFFLE(state, items, count)                                                      \
	do {                                                                                   \
		for (size_t last = (count)-1; last > 0; last--) {                              \
			size_t other = peer_next(state) % (last + 1);                          \
			__typeof__((items)[0]) held = (items)[last];                           \
			(items)[last] = (items)[other];                                        \
			(items)[other] = held;                                                 \
		}                                                                              \
	} while (0)

/* FNV-1a. */
#define PEER_DIGEST_EMPTY 0xcbf29ce484222325ULL
static inline uint64_t peer_hash(uint64_t hash, const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
	return hash;
}

static inline void peer_put32(uint8_t *to, uint32_t value)
{
	value = __builtin_bswap32(value);
	memcpy(to, &value, 4);
}

static inline void peer_put64(uint8_t *to, uint64_t value)
{
	value = __builtin_bswap64(value);
	memcpy(to, &value, 8);
}

static inline void peer_make_sa(const struct peer_suite *suite, size_t index, struct peer_sa *sa)
{
	uint64_t stream = PEER_STREAM_KEYS + index;
	uint8_t key_and_salt[36];

	memset(sa, 0, sizeof(*sa));
	peer_fill(&stream, key_and_salt, suite->key_len + suite->salt_len);
	memcpy(sa->key, key_and_salt, suite->key_len);
	memcpy(sa->salt, key_and_salt + suite->key_len, suite->salt_len);
	peer_fill(&stream, sa->auth_key, suite->auth_key_len);
	sa->spi = 0x1000 + (uint32_t)index;
}

/* Memory backed by huge pages where the system gives them. */
static inline void *peer_memory(size_t length)
{
	length = (length + PEER_HUGE_PAGE - 1) / PEER_HUGE_PAGE * PEER_HUGE_PAGE;
	void *memory = aligned_alloc(PEER_HUGE_PAGE, length);

	if (memory) {
		madvise(memory, length, MADV_HUGEPAGE);
		memset(memory, 0, length);
	}
	return memory;
}

/*
 * Writes the packets of the level of the AEAD into fresh memory, text on the boundary of a
 * cache line, and lists them; the memory, or NULL.
 */
static inline void *peer_write_packets(const struct peer_case *c, struct peer_packet *packets)
{
	const struct peer_suite *suite = c->suite;
	size_t header = 8 + suite->iv_len, longest = 0;
	size_t lead = (PEER_LINE - header % PEER_LINE) % PEER_LINE;

	for (size_t i = 0; i < PEER_PACKETS; i++) {
		size_t text = c->lengths[i];

		if (suite->cipher == PEER_AES_CBC_HMAC)
			text = (text + 15) / 16 * 16;
		packets[i].text_len = (uint32_t)text;
		if (text > longest)
			longest = text;
	}
	size_t stride = lead + header + longest + suite->icv_len;

	/* An odd number of lines spreads the packets over all sets of the caches. */
	stride = ((stride + PEER_LINE - 1) / PEER_LINE | 1) * PEER_LINE;
	uint8_t *memory = peer_memory(stride * PEER_PACKETS);

	if (!memory)
		return NULL;
	for (size_t i = 0; i < PEER_PACKETS; i++) {
		uint64_t stream = PEER_STREAM_TEXT + i;
		uint8_t *esp = memory + i * stride + lead;

		packets[i].esp = esp;
		peer_put32(esp, 0x1000 + (uint32_t)i);
		peer_put32(esp + 4, (uint32_t)i + 1);
		if (suite->cipher == PEER_AES_CBC_HMAC)
			peer_fill(&stream, esp + 8, suite->iv_len);
		else
			peer_put64(esp + 8, i + 1);
		peer_fill(&stream, esp + header, packets[i].text_len);
	}
	return memory;
}

/* What peer_digest returns at the level of the AEAD. */
static inline uint64_t peer_digest_packets(const struct peer_suite *suite,
					   const struct peer_packet *packets, bool sealed)
{
	uint64_t hash = PEER_DIGEST_EMPTY;

	for (size_t i = 0; i < PEER_PACKETS; i++)
		hash = peer_hash(hash, packets[i].esp,
				 8 + suite->iv_len + packets[i].text_len +
					 (sealed ? suite->icv_len : 0));
	return hash;
}

/* Writes the inner packet of the level of ESP: IPv4, UDP, and text to fill. */
static inline void peer_write_inner(const struct peer_case *c, size_t index, uint8_t *packet)
{
	size_t length = c->lengths[index];
	uint64_t stream = PEER_STREAM_TEXT + index;
	static const uint8_t header[28] = {
		0x45, 0, 0, 0, 0,  0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1,
		10,   2, 0, 1, 4,  0, 4, 1, 0,  0,  0, 0,
	};
	uint32_t sum = 0;

	memcpy(packet, header, sizeof(header));
	packet[2] = (uint8_t)(length >> 8);
	packet[3] = (uint8_t)length;
	packet[4] = (uint8_t)(index >> 8);
	packet[5] = (uint8_t)index;
	packet[24] = (uint8_t)((length - 20) >> 8);
	packet[25] = (uint8_t)(length - 20);
	for (size_t i = 0; i < 20; i += 2)
		sum += (uint32_t)packet[i] << 8 | packet[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	packet[10] = (uint8_t)(sum >> 8);
	packet[11] = (uint8_t)sum;
	peer_fill(&stream, packet + 28, length - 28);
}

/* ---- the protocol ---- */

static const struct peer_suite peer_suites[] = {
	{ "aes128gcm16", PEER_AES_GCM, 16, 4, 0, 8, 16 },
	{ "aes192gcm16", PEER_AES_GCM, 24, 4, 0, 8, 16 },
	{ "aes256gcm16", PEER_AES_GCM, 32, 4, 0, 8, 16 },
	{ "chacha20poly1305", PEER_CHACHA20_POLY1305, 32, 4, 0, 8, 16 },
	{ "aes128-sha256", PEER_AES_CBC_HMAC, 16, 0, 32, 16, 16 },
	{ "aes256-sha256", PEER_AES_CBC_HMAC, 32, 0, 32, 16, 16 },
};

static inline uint64_t peer_ticks(void)
{
	_mm_lfence();
	uint64_t now = __rdtsc();

	_mm_lfence();
	return now;
}

static inline long peer_preemptions(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_SELF, &usage) ? 0 : usage.ru_nivcsw;
}

static inline const struct peer_suite *peer_suite_by_name(const char *name)
{
	for (size_t i = 0; i < sizeof(peer_suites) / sizeof(peer_suites[0]); i++)
		if (!strcmp(peer_suites[i].name, name))
			return &peer_suites[i];
	return NULL;
}

static inline void peer_set_lengths(struct peer_case *c, const char *size)
{
	static const size_t imix[12] = { 64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, 1420 };
	bool mixed = !strcmp(size, "imix");
	size_t fixed = mixed ? 0 : strtoul(size, NULL, 10);

	for (size_t i = 0; i < PEER_PACKETS; i++)
		c->lengths[i] = mixed ? imix[i % 12] : fixed;
	if (mixed) {
		uint64_t stream = PEER_STREAM_IMIX;

		PEER_SHUFFLE(&stream, c->lengths, PEER_PACKETS);
	}
}

static inline bool peer_set_order(struct peer_case *c)
{
	uint64_t stream = PEER_STREAM_ORDER;

	c->order = malloc(c->sas * sizeof(*c->order));
	if (!c->order)
		return false;
	for (size_t i = 0; i < c->sas; i++)
		c->order[i] = (uint32_t)i;
	PEER_SHUFFLE(&stream, c->order, c->sas);
	return true;
}

/* One pass with its preparation; how many packets were refused. */
static inline size_t peer_timed_pass(struct peer_case *c, bool out, uint64_t *ticks)
{
	static uint32_t sa[PEER_PACKETS];

	if (out) {
		for (size_t i = 0; i < PEER_PACKETS; i++)
			sa[i] = c->order[(c->turn * PEER_PACKETS + i) % c->sas];
		peer_assign(sa);
	} else {
		c->turn++;
	}
	uint64_t start = peer_ticks();
	size_t refused = peer_pass(out);

	*ticks = peer_ticks() - start;
	return refused;
}

/* Out and in to warm up, out and in to measure. */
static inline void peer_repeat(struct peer_case *c)
{
	uint64_t out, in;
	long preemptions = peer_preemptions();
	size_t refused = peer_timed_pass(c, true, &out) + peer_timed_pass(c, false, &in);

	refused += peer_timed_pass(c, true, &out) + peer_timed_pass(c, false, &in);
	preemptions = peer_preemptions() - preemptions;
	if (refused)
		printf("fault %zu packets were refused\n", refused);
	else
		printf("ticks %llu %llu %ld\n", (unsigned long long)out, (unsigned long long)in,
		       preemptions);
}

static inline void peer_forget(struct peer_case *c)
{
	free(c->order);
	c->order = NULL;
}

static inline void peer_start_case(struct peer_case *c, bool esp, const char *suite,
				   const char *size, const char *sas)
{
	const char *reason = NULL;
	uint64_t ticks;

	c->suite = peer_suite_by_name(suite);
	c->sas = strtoul(sas, NULL, 10);
	c->turn = 0;
	if (!c->suite)
		reason = "the program does not have the suite";
	else if (!c->sas || !peer_set_order(c))
		reason = "too little memory for the associations";
	if (!reason) {
		c->own_ivs = esp && c->suite->cipher == PEER_AES_CBC_HMAC;
		peer_set_lengths(c, size);
		reason = peer_prepare(c);
	}
	if (reason) {
		printf("declined %s\n", reason);
		peer_forget(c);
		return;
	}
	uint64_t clear = peer_digest(false);
	size_t refused = peer_timed_pass(c, true, &ticks);
	uint64_t sealed = peer_digest(true);

	refused += peer_timed_pass(c, false, &ticks);
	if (refused)
		printf("fault %zu packets were refused\n", refused);
	else if (peer_digest(false) != clear)
		printf("fault opened packets are not those sealed\n");
	else if (c->own_ivs)
		printf("ready -\n");
	else
		printf("ready %016llx\n", (unsigned long long)sealed);
}

/* Says who it is and obeys until its input ends. */
static inline int peer_main(const char *name, const char *level)
{
	static struct peer_case c;
	char line[256], suite[64], size[16], sas[16];

	printf("hello %s %s\n", name, level);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "case %63s %15s %15s", suite, size, sas) == 3) {
			peer_start_case(&c, !strcmp(level, "esp"), suite, size, sas);
		} else if (!strcmp(line, "run\n")) {
			peer_repeat(&c);
		} else if (!strcmp(line, "end\n")) {
			peer_finish();
			peer_forget(&c);
			printf("ended\n");
		} else {
			printf("fault the program does not know this line\n");
		}
		fflush(stdout);
	}
	return 0;
}

#endif
