#include "fg_statement.h"

#include <stdio.h>
#include <string.h>

#include "mbedtls/md.h"
#include "mbedtls/pk.h"
#ifdef FG_ED25519
#include <sodium.h>
#endif

static const char KIND[] = "application/vnd.fleetgate.bundle.v1+json";

/* The start of every Ed25519 SubjectPublicKeyInfo (RFC 8410); the key's 32 bytes follow. */
static const uint8_t ED25519[] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};

static bool sha256(const void *bytes, size_t length, uint8_t digest[32])
{
    return mbedtls_md(mbedtls_md_info_from_type(MBEDTLS_MD_SHA256), bytes, length, digest) == 0;
}

static const fg_signer *find_signer(const fg_known *known, const char *key_id)
{
    for (size_t i = 0; i < known->signer_count; i++) {
        uint8_t digest[32];
        char hex[65];
        if (!sha256(known->signers[i].der, known->signers[i].length, digest)) {
            return NULL;
        }
        for (size_t at = 0; at < sizeof digest; at++) {
            (void)snprintf(hex + 2 * at, 3, "%02x", digest[at]);
        }
        if (strcmp(hex, key_id) == 0) {
            return &known->signers[i];
        }
    }
    return NULL;
}

static bool is_signed(const fg_signer *signer, const void *message, size_t length, const uint8_t *signature,
                      size_t signature_length)
{
    if (signer->length == sizeof ED25519 + 32 && memcmp(signer->der, ED25519, sizeof ED25519) == 0) {
#ifdef FG_ED25519
        return signature_length == crypto_sign_BYTES && sodium_init() >= 0 &&
               crypto_sign_verify_detached(signature, message, length, signer->der + sizeof ED25519) == 0;
#else
        return false;
#endif
    }
    mbedtls_pk_context key;
    uint8_t digest[32];
    mbedtls_pk_init(&key);
    const bool good = mbedtls_pk_parse_public_key(&key, signer->der, signer->length) == 0 &&
                      mbedtls_pk_can_do(&key, MBEDTLS_PK_ECDSA) && mbedtls_pk_get_bitlen(&key) == 256 &&
                      sha256(message, length, digest) &&
                      mbedtls_pk_verify(&key, MBEDTLS_MD_SHA256, digest, 32, signature, signature_length) == 0;
    mbedtls_pk_free(&key);
    return good;
}

static bool is_name(const char *text, const char *marks, size_t most)
{
    static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    if (text == NULL || strlen(text) > most || strspn(text, LETTERS) == 0) {
        return false;
    }
    for (const char *at = text; *at != '\0'; at++) {
        if (strchr(LETTERS, *at) == NULL && strchr(marks, *at) == NULL) {
            return false;
        }
    }
    return true;
}

static bool read_digest(const char *text, uint8_t digest[32])
{
    static const char DIGITS[] = "0123456789abcdef";
    if (text == NULL || strlen(text) != 64 || strspn(text, DIGITS) != 64) {
        return false;
    }
    for (size_t i = 0; i < 32; i++) {
        digest[i] = (uint8_t)((strchr(DIGITS, text[2 * i]) - DIGITS) << 4 | (strchr(DIGITS, text[2 * i + 1]) - DIGITS));
    }
    return true;
}

static bool read_artifact(fg_statement *statement, const cJSON *entry)
{
    const char *name = fg_text_of(entry, "name");
    if (statement->artifact_count == FG_ARTIFACTS || !is_name(name, "._-", 128)) { /* never a path */
        return false;
    }
    for (size_t i = 0; i < statement->artifact_count; i++) {
        if (strcmp(statement->artifacts[i].name, name) == 0) {
            return false;
        }
    }
    fg_artifact *artifact = &statement->artifacts[statement->artifact_count++];
    strcpy(artifact->name, name);
    return fg_integer_of(entry, "size", &artifact->size) && artifact->size >= 1 &&
           read_digest(fg_text_of(entry, "sha256"), artifact->sha256);
}

static bool is_for(const cJSON *hardware, const fg_known *known)
{
    const cJSON *entry, *revision;
    cJSON_ArrayForEach(entry, hardware)
    {
        const char *model = fg_text_of(entry, "model");
        const cJSON *revisions = cJSON_GetObjectItemCaseSensitive(entry, "revisions");
        if (model == NULL || strcmp(model, known->model) != 0) {
            continue;
        }
        if (cJSON_GetArraySize(revisions) == 0) {
            return true;
        }
        cJSON_ArrayForEach(revision, revisions)
        {
            if (known->revision != NULL && cJSON_IsString(revision) &&
                strcmp(revision->valuestring, known->revision) == 0) {
                return true;
            }
        }
    }
    return cJSON_GetArraySize(hardware) == 0;
}

/* Step 3 on: what the payload says. */
static const char *read_statement(fg_statement *statement, const cJSON *json, const fg_known *known)
{
    int64_t v, floor = 0;
    const char *product = fg_text_of(json, "product"), *version = fg_text_of(json, "version");
    const cJSON *artifact, *artifacts = cJSON_GetObjectItemCaseSensitive(json, "artifacts");
    const cJSON *hardware = cJSON_GetObjectItemCaseSensitive(json, "hardware");
    const cJSON *given = cJSON_GetObjectItemCaseSensitive(json, "floor");
    *statement = (fg_statement){0};
    if (!fg_integer_of(json, "v", &v) || v != 1 || product == NULL || !is_name(version, ".+_~-", 64) ||
        !fg_integer_of(json, "bundle_seq", &statement->bundle_seq) || !cJSON_IsArray(artifacts) ||
        cJSON_GetArraySize(artifacts) == 0 || (hardware != NULL && !cJSON_IsArray(hardware)) ||
        (given != NULL && !cJSON_IsNull(given) && !fg_integer_of(json, "floor", &floor))) {
        return "statement_invalid";
    }
    cJSON_ArrayForEach(artifact, artifacts)
    {
        if (!read_artifact(statement, artifact)) {
            return "statement_invalid";
        }
    }
    strcpy(statement->version, version);
    if (strcmp(product, known->product) != 0) {
        return "wrong_product";
    }
    if (statement->bundle_seq <= known->highest_seq) {
        return "not_above_installed";
    }
    if (!is_for(hardware, known)) {
        return "wrong_hardware";
    }
    return floor > known->running_seq ? "below_floor" : NULL;
}

const char *fg_verify_statement(fg_statement *statement, const cJSON *envelope, const fg_known *known, uint8_t *work,
                                size_t work_size)
{
    uint8_t signature[128];
    const char *kind = fg_text_of(envelope, "payloadType"), *payload = fg_text_of(envelope, "payload");
    const cJSON *signatures = cJSON_GetObjectItemCaseSensitive(envelope, "signatures");
    const cJSON *only = cJSON_GetArraySize(signatures) == 1 ? cJSON_GetArrayItem(signatures, 0) : NULL;
    const char *key_id = fg_text_of(only, "keyid"), *text = fg_text_of(only, "sig");
    if (kind == NULL || strcmp(kind, KIND) != 0 || payload == NULL || key_id == NULL || text == NULL) {
        return "statement_invalid";
    }
    /* The payload is decoded into its place in the encoding; how long it is, the base64 tells beforehand. */
    const size_t characters = strlen(payload);
    size_t expected = characters / 4 * 3;
    for (size_t i = 0; i < 2 && characters >= 4 && payload[characters - 1 - i] == '='; i++) {
        expected--;
    }
    const long signature_length = fg_base64_decode(text, signature, sizeof signature);
    fg_text encoded;
    fg_start(&encoded, (char *)work, work_size);
    fg_add(&encoded, "DSSEv1 %zu %s %zu ", sizeof KIND - 1, KIND, expected);
    if (encoded.full || expected > FG_STATEMENT_BYTES || signature_length < 0 ||
        fg_base64_decode(payload, work + encoded.length, work_size - encoded.length) != (long)expected) {
        return "statement_invalid";
    }
    const fg_signer *signer = find_signer(known, key_id);
    if (signer == NULL ||
        !is_signed(signer, work, encoded.length + expected, signature, (size_t)signature_length)) {
        return "statement_invalid";
    }
    cJSON *json = cJSON_ParseWithLength((const char *)work + encoded.length, expected);
    const char *reason = json == NULL ? "statement_invalid" : read_statement(statement, json, known);
    cJSON_Delete(json);
    return reason;
}
