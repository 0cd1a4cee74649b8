/* OpenSSL through EVP, as its manual shows: one context a key, the nonce set for each packet. */
#include "peer.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

struct contexts {
	EVP_CIPHER_CTX *seal;
	EVP_CIPHER_CTX *open;
	EVP_MAC_CTX *mac;
	uint8_t salt[4];
};

static const struct peer_suite *suite;
static struct peer_packet packets[PEER_PACKETS];
static void *memory;
static struct contexts *keys;
static size_t key_count;

int main(void)
{
	char name[64];

	snprintf(name, sizeof(name), "openssl-%s", OpenSSL_version(OPENSSL_VERSION_STRING));
	return peer_main(name, "aead");
}

static bool make_mac(const struct peer_sa *sa, struct contexts *to)
{
	EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	OSSL_PARAM parameters[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, "SHA256", 0),
		OSSL_PARAM_construct_end(),
	};

	to->mac = EVP_MAC_CTX_new(hmac);
	EVP_MAC_free(hmac);
	return to->mac && EVP_MAC_init(to->mac, sa->auth_key, suite->auth_key_len, parameters);
}

static bool make_contexts(size_t index, struct contexts *to)
{
	static const char *const gcm[] = { "AES-128-GCM", "AES-192-GCM", "AES-256-GCM" };
	static const char *const cbc[] = { "AES-128-CBC", "AES-192-CBC", "AES-256-CBC" };
	size_t row = suite->key_len / 8 - 2;
	const char *name = suite->cipher == PEER_AES_GCM      ? gcm[row] :
			   suite->cipher == PEER_AES_CBC_HMAC ? cbc[row] :
								"ChaCha20-Poly1305";
	EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, NULL);
	struct peer_sa sa;

	peer_make_sa(suite, index, &sa);
	memcpy(to->salt, sa.salt, sizeof(to->salt));
	to->seal = EVP_CIPHER_CTX_new();
	to->open = EVP_CIPHER_CTX_new();
	bool good = cipher && to->seal && to->open &&
		    EVP_EncryptInit_ex(to->seal, cipher, NULL, sa.key, NULL) &&
		    EVP_DecryptInit_ex(to->open, cipher, NULL, sa.key, NULL) &&
		    EVP_CIPHER_CTX_set_padding(to->seal, 0) &&
		    EVP_CIPHER_CTX_set_padding(to->open, 0);

	EVP_CIPHER_free(cipher);
	return good && (suite->cipher != PEER_AES_CBC_HMAC || make_mac(&sa, to));
}

static const char *peer_prepare(const struct peer_case *c)
{
	suite = c->suite;
	memory = peer_write_packets(c, packets);
	keys = calloc(c->sas, sizeof(*keys));
	key_count = keys ? c->sas : 0;
	if (!memory || !keys) {
		peer_finish();
		return "too little memory";
	}
	for (size_t i = 0; i < c->sas; i++)
		if (!make_contexts(i, &keys[i])) {
			peer_finish();
			return "EVP refused the key";
		}
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

static inline bool aead(struct peer_packet *p, bool out)
{
	uint8_t *text = p->esp + 16, *icv = text + p->text_len;
	int length, text_len = (int)p->text_len;

	if (out) {
		EVP_CIPHER_CTX *context = keys[p->sa].seal;

		return EVP_EncryptInit_ex(context, NULL, NULL, NULL, p->nonce) &&
		       EVP_EncryptUpdate(context, NULL, &length, p->esp, 8) &&
		       EVP_EncryptUpdate(context, text, &length, text, text_len) &&
		       EVP_EncryptFinal_ex(context, icv, &length) == 1 &&
		       EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, icv);
	}
	EVP_CIPHER_CTX *context = keys[p->sa].open;

	return EVP_DecryptInit_ex(context, NULL, NULL, NULL, p->nonce) &&
	       EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, 16, icv) &&
	       EVP_DecryptUpdate(context, NULL, &length, p->esp, 8) &&
	       EVP_DecryptUpdate(context, text, &length, text, text_len) &&
	       EVP_DecryptFinal_ex(context, icv, &length) == 1;
}

static inline bool authenticate(EVP_MAC_CTX *mac, const struct peer_packet *p, uint8_t tag[32])
{
	size_t length;

	return EVP_MAC_init(mac, NULL, 0, NULL) && EVP_MAC_update(mac, p->esp, 24 + p->text_len) &&
	       EVP_MAC_final(mac, tag, &length, 32);
}

static inline bool cbc_hmac(struct peer_packet *p, bool out)
{
	struct contexts *key = &keys[p->sa];
	uint8_t *text = p->esp + 24, *icv = text + p->text_len, tag[32];
	int length, text_len = (int)p->text_len;

	if (out) {
		bool good = EVP_EncryptInit_ex(key->seal, NULL, NULL, NULL, p->esp + 8) &&
			    EVP_EncryptUpdate(key->seal, text, &length, text, text_len) &&
			    authenticate(key->mac, p, tag);

		memcpy(icv, tag, 16);
		return good;
	}
	return authenticate(key->mac, p, tag) && !CRYPTO_memcmp(tag, icv, 16) &&
	       EVP_DecryptInit_ex(key->open, NULL, NULL, NULL, p->esp + 8) &&
	       EVP_DecryptUpdate(key->open, text, &length, text, text_len);
}

static size_t peer_pass(bool out)
{
	size_t refused = 0;

	if (suite->cipher == PEER_AES_CBC_HMAC)
		for (size_t i = 0; i < PEER_PACKETS; i++)
			refused += !cbc_hmac(&packets[i], out);
	else
		for (size_t i = 0; i < PEER_PACKETS; i++)
			refused += !aead(&packets[i], out);
	return refused;
}

static uint64_t peer_digest(bool sealed)
{
	return peer_digest_packets(suite, packets, sealed);
}

static void peer_finish(void)
{
	for (size_t i = 0; i < key_count; i++) {
		EVP_CIPHER_CTX_free(keys[i].seal);
		EVP_CIPHER_CTX_free(keys[i].open);
		EVP_MAC_CTX_free(keys[i].mac);
	}
	free(keys);
	free(memory);
	memory = keys = NULL;
	key_count = 0;
}
