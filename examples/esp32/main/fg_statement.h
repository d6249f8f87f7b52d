/* What a device verifies before it installs: docs/protocol.md, section 13. Needs mbedtls; with FG_ED25519 also
   libsodium, because mbedtls has no Ed25519. */
#ifndef FG_STATEMENT_H
#define FG_STATEMENT_H

#include "fg_messages.h"

#define FG_STATEMENT_BYTES 6144
#define FG_ARTIFACTS 8

/* A public key that the device was made with: DER SubjectPublicKeyInfo, P-256 or Ed25519. */
typedef struct {
    const uint8_t *der;
    size_t length;
} fg_signer;

typedef struct {
    const fg_signer *signers;
    size_t signer_count;
    const char *product, *model, *revision; /* revision may be NULL */
    int64_t highest_seq, running_seq;       /* ever installed; of the image that runs */
} fg_known;

typedef struct {
    char name[129];
    int64_t size;
    uint8_t sha256[32];
} fg_artifact;

typedef struct {
    char version[65];
    int64_t bundle_seq;
    size_t artifact_count;
    fg_artifact artifacts[FG_ARTIFACTS];
} fg_statement;

/* Steps 1 to 7. Returns NULL, or the reason (section 15) not to install. Step 8 is the caller's, after the download.
   `work` needs FG_STATEMENT_BYTES and 128 more. */
const char *fg_verify_statement(fg_statement *statement, const cJSON *envelope, const fg_known *known, uint8_t *work,
                                size_t work_size);

#endif
