/* The envelope of docs/protocol.md, section 4: plain C11, no heap, no library. */
#ifndef FG_ENVELOPE_H
#define FG_ENVELOPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FG_MESSAGE_BYTES 16384 /* section 3: no message is longer */

/* Text that grows in a buffer of fixed size. `full` stays set once something did not fit. */
typedef struct {
    char *data;
    size_t size, length;
    bool full;
} fg_text;

void fg_start(fg_text *text, char *data, size_t size);
void fg_add(fg_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fg_add_bytes(fg_text *text, const void *bytes, size_t length);
void fg_add_json(fg_text *text, const char *value); /* in quotes, escaped as RFC 8259 has it */
void fg_add_base64(fg_text *text, const uint8_t *bytes, size_t length);

/* Standard base64 with padding, and nothing else. Returns the number of bytes, or -1. */
long fg_base64_decode(const char *text, uint8_t *bytes, size_t size);

/* The pre-authentication encoding: this is what is signed. */
void fg_add_encoded(fg_text *text, const char *kind, const void *payload, size_t length);

/* Signs `length` bytes; writes at most `size` bytes of signature and returns their number, or 0.
   ECDSA signatures must be DER: see fg_der_signature. */
typedef size_t fg_sign(void *context, const void *message, size_t length, uint8_t *signature, size_t size);

/* Writes the envelope of a payload. `scratch` needs room for the payload and some 80 bytes. */
bool fg_write_envelope(fg_text *out, fg_text *scratch, const char *verb, const char *key_id, const char *payload,
                       fg_sign *sign, void *context);

/* From the r and s of a secure element (ATECC608, the DS peripheral of a P-256 chip), 32 bytes each, to the DER
   of section 4. `der` needs 72 bytes; returns how many are used. */
size_t fg_der_signature(const uint8_t raw[64], uint8_t *der);

#endif
