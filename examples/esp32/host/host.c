/* The portable parts on the command line, for tests on a computer. Input comes on stdin. */
#include <inttypes.h>
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/ecdsa.h>
#include <mbedtls/entropy.h>
#include <mbedtls/md.h>
#include <mbedtls/pk.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fg_statement.h"

static char input[2 * FG_MESSAGE_BYTES], output[2 * FG_MESSAGE_BYTES], scratch[2 * FG_MESSAGE_BYTES];
static size_t input_length;

static size_t sign_ed25519(void *seed, const void *message, size_t length, uint8_t *signature, size_t size)
{
    uint8_t public[crypto_sign_PUBLICKEYBYTES], secret[crypto_sign_SECRETKEYBYTES];
    if (size < crypto_sign_BYTES || sodium_init() < 0 || crypto_sign_seed_keypair(public, secret, seed) != 0) {
        return 0;
    }
    return crypto_sign_detached(signature, NULL, message, length, secret) == 0 ? crypto_sign_BYTES : 0;
}

/* As a secure element does it: r and s of 32 bytes each, and then DER. */
static size_t sign_p256(void *pem, const void *message, size_t length, uint8_t *signature, size_t size)
{
    uint8_t digest[32], raw[64];
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_pk_context key;
    mbedtls_mpi r, s;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random);
    mbedtls_pk_init(&key);
    mbedtls_mpi_init(&r);
    mbedtls_mpi_init(&s);
    int failed = mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0);
    failed |= mbedtls_pk_parse_key(&key, pem, strlen(pem) + 1, NULL, 0);
    failed |= mbedtls_md(mbedtls_md_info_from_type(MBEDTLS_MD_SHA256), message, length, digest);
    if (!failed) {
        mbedtls_ecp_keypair *pair = mbedtls_pk_ec(key);
        failed |= mbedtls_ecdsa_sign(&pair->grp, &r, &s, &pair->d, digest, 32, mbedtls_ctr_drbg_random, &random);
        failed |= mbedtls_mpi_write_binary(&r, raw, 32);
        failed |= mbedtls_mpi_write_binary(&s, raw + 32, 32);
    }
    mbedtls_mpi_free(&r);
    mbedtls_mpi_free(&s);
    mbedtls_pk_free(&key);
    mbedtls_ctr_drbg_free(&random);
    mbedtls_entropy_free(&entropy);
    return failed || size < 72 ? 0 : fg_der_signature(raw, signature);
}

/* hello: the payload of section 4's worked example. */
static int write_hello(fg_text *out)
{
    const fg_device device = {.audience = "mqtt.example.com",
                              .topic_base = "fg/v1/pump-17",
                              .conn = "7c1f0a9e55d24b38",
                              .boot = "02b9d6c4e18f7a60",
                              .model = "pump",
                              .version = "1.4.0"};
    fg_write_hello(out, &device, 1, &(fg_hello){.nonce = "q3J8vN0xTtWm2K5a", .ts = 1767225600000});
    return 0;
}

/* full: a hello with everything in it, and text that must be escaped. */
static int write_full(fg_text *out)
{
    const fg_device device = {.audience = "mqtt.example.com",
                              .topic_base = "fg/v1/pump-17",
                              .conn = "7c1f0a9e55d24b38",
                              .boot = "02b9d6c4e18f7a60",
                              .model = "pu\"m\\p\n",
                              .revision = "b",
                              .version = "1.4.0",
                              .bundle_seq = INT64_C(9007199254740991)};
    const char *const chain[] = {"QUJD", "REVG"};
    const fg_hello hello = {.nonce = "q3J8vN0xTtWm2K5a",
                            .challenge = "a challenge",
                            .chain = chain,
                            .chain_length = 2,
                            .last_offer_id = "17",
                            .last_result = "failed",
                            .last_reason = "digest_mismatch"};
    fg_write_hello(out, &device, 2, &hello);
    return 0;
}

/* verify PRODUCT MODEL REVISION HIGHEST RUNNING SIGNER.der…: the envelope on stdin. */
static int verify(int count, char **words)
{
    static uint8_t der[8][200], work[FG_STATEMENT_BYTES + 128];
    fg_signer signers[8];
    fg_known known = {.signers = signers,
                      .product = words[0],
                      .model = words[1],
                      .revision = words[2][0] != '\0' ? words[2] : NULL,
                      .highest_seq = atoll(words[3]),
                      .running_seq = atoll(words[4])};
    for (int i = 5; i < count && i < 13; i++, known.signer_count++) {
        FILE *file = fopen(words[i], "rb");
        if (file == NULL) {
            return 1;
        }
        signers[i - 5] = (fg_signer){.der = der[i - 5], .length = fread(der[i - 5], 1, sizeof der[0], file)};
        fclose(file);
    }
    fg_statement statement;
    cJSON *envelope = cJSON_ParseWithLength(input, input_length);
    const char *reason = fg_verify_statement(&statement, envelope, &known, work, sizeof work);
    cJSON_Delete(envelope);
    if (reason != NULL) {
        puts(reason);
        return 0;
    }
    printf("%s %" PRId64, statement.version, statement.bundle_seq);
    for (size_t i = 0; i < statement.artifact_count; i++) {
        printf(" %s %" PRId64 " ", statement.artifacts[i].name, statement.artifacts[i].size);
        for (size_t at = 0; at < 32; at++) {
            printf("%02x", statement.artifacts[i].sha256[at]);
        }
    }
    puts("");
    return 0;
}

/* reply NONCE: what was read, one line. */
static int read_reply(const char *nonce)
{
    fg_reply reply;
    if (!fg_read_reply(&reply, input, input_length, nonce)) {
        puts("unreadable");
        return 0;
    }
    fg_offer offer = {0};
    const bool offered = reply.offer != NULL && fg_read_offer(&offer, reply.offer);
    const char *url = offered && !offer.cancelled ? fg_url_of(&offer, "pump.img") : NULL;
    printf("%d %d %s %s %u %u %s %s\n", reply.result, reply.chain_required, reply.challenge ? reply.challenge : "-",
           reply.product ? reply.product : "-", reply.retry_after_seconds, reply.heartbeat_seconds,
           offered ? offer.offer_id : "-", url ? url : "-");
    fg_free_reply(&reply);
    return 0;
}

int main(int count, char **words)
{
    fg_text out, work;
    fg_start(&out, output, sizeof output);
    fg_start(&work, scratch, sizeof scratch);
    const char *what = count > 1 ? words[1] : "";
    int code = 2;
    if (strcmp(what, "hello") == 0) {
        code = write_hello(&out);
    } else if (strcmp(what, "full") == 0) {
        code = write_full(&out);
    } else {
        input_length = fread(input, 1, sizeof input - 1, stdin);
        if (strcmp(what, "ed25519") == 0 && count == 4) { /* VERB KEYID; on stdin the seed, then the payload */
            code = !fg_write_envelope(&out, &work, words[2], words[3], input + 32, sign_ed25519, input);
        } else if (strcmp(what, "p256") == 0 && count == 5) { /* VERB KEYID PEM */
            code = !fg_write_envelope(&out, &work, words[2], words[3], input, sign_p256, words[4]);
        } else if (strcmp(what, "der") == 0 && input_length == 64) {
            uint8_t der[72];
            fg_add_base64(&out, der, fg_der_signature((const uint8_t *)input, der));
            code = 0;
        } else if (strcmp(what, "base64") == 0) {
            const long length = fg_base64_decode(input, (uint8_t *)scratch, sizeof scratch);
            fg_add(&out, "%ld ", length);
            fg_add_base64(&out, (const uint8_t *)scratch, length < 0 ? 0 : (size_t)length);
            code = 0;
        } else if (strcmp(what, "verify") == 0 && count > 7) {
            code = verify(count - 2, words + 2);
        } else if (strcmp(what, "reply") == 0 && count == 3) {
            code = read_reply(words[2]);
        }
    }
    fwrite(out.data, 1, out.length, stdout);
    return code;
}
