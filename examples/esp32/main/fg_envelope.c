#include "fg_envelope.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void fg_start(fg_text *text, char *data, size_t size)
{
    *text = (fg_text){.data = data, .size = size};
    data[0] = '\0';
}

void fg_add_bytes(fg_text *text, const void *bytes, size_t length)
{
    if (text->full || length >= text->size - text->length) { /* one byte stays for the NUL */
        text->full = true;
        return;
    }
    memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = '\0';
}

void fg_add(fg_text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const size_t room = text->size - text->length;
    const int length = text->full ? 0 : vsnprintf(text->data + text->length, room, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= room) {
        text->full = true;
    } else {
        text->length += (size_t)length;
    }
}

void fg_add_json(fg_text *text, const char *value)
{
    fg_add(text, "\"");
    for (const char *at = value; *at != '\0'; at++) {
        const unsigned char byte = (unsigned char)*at;
        if (byte == '"' || byte == '\\') {
            fg_add(text, "\\%c", byte);
        } else if (byte < 0x20) {
            fg_add(text, "\\u%04x", byte);
        } else {
            fg_add_bytes(text, at, 1);
        }
    }
    fg_add(text, "\"");
}

void fg_add_base64(fg_text *text, const uint8_t *bytes, size_t length)
{
    for (size_t at = 0; at < length; at += 3) {
        const size_t left = length - at;
        const uint32_t group = (uint32_t)bytes[at] << 16 | (left > 1 ? (uint32_t)bytes[at + 1] << 8 : 0) |
                               (left > 2 ? bytes[at + 2] : 0);
        const char four[4] = {ALPHABET[group >> 18], ALPHABET[group >> 12 & 63],
                              left > 1 ? ALPHABET[group >> 6 & 63] : '=', left > 2 ? ALPHABET[group & 63] : '='};
        fg_add_bytes(text, four, sizeof four);
    }
}

long fg_base64_decode(const char *text, uint8_t *bytes, size_t size)
{
    const size_t length = strlen(text);
    if (length % 4 != 0) {
        return -1;
    }
    size_t made = 0;
    for (size_t at = 0; at < length; at += 4) {
        const size_t padding = at + 4 < length ? 0 : (size_t)(text[at + 3] == '=') + (text[at + 2] == '=' ? 1 : 0);
        uint32_t group = 0;
        for (size_t i = 0; i < 4; i++) {
            const char *found = i < 4 - padding ? memchr(ALPHABET, text[at + i], 64) : ALPHABET;
            if (found == NULL || (i >= 4 - padding && text[at + i] != '=')) {
                return -1;
            }
            group = group << 6 | (uint32_t)(found - ALPHABET);
        }
        if (made + 3 - padding > size || (group & ((1u << 8 * padding) - 1)) != 0) {
            return -1; /* no room; or bits that an encoder would not have left */
        }
        for (size_t i = 0; i < 3 - padding; i++) {
            bytes[made++] = (uint8_t)(group >> (16 - 8 * i));
        }
    }
    return (long)made;
}

void fg_add_encoded(fg_text *text, const char *kind, const void *payload, size_t length)
{
    fg_add(text, "DSSEv1 %zu %s %zu ", strlen(kind), kind, length);
    fg_add_bytes(text, payload, length);
}

bool fg_write_envelope(fg_text *out, fg_text *scratch, const char *verb, const char *key_id, const char *payload,
                       fg_sign *sign, void *context)
{
    char kind[64];
    uint8_t signature[512]; /* RSA of 4096 bits */
    (void)snprintf(kind, sizeof kind, "application/vnd.fleetgate.%s.v1+json", verb);
    fg_add_encoded(scratch, kind, payload, strlen(payload));
    if (scratch->full) {
        return false;
    }
    const size_t length = sign(context, scratch->data, scratch->length, signature, sizeof signature);
    fg_add(out, "{\"payloadType\":\"%s\",\"payload\":\"", kind);
    fg_add_base64(out, (const uint8_t *)payload, strlen(payload));
    fg_add(out, "\",\"signatures\":[{\"keyid\":\"%s\",\"sig\":\"", key_id);
    fg_add_base64(out, signature, length);
    fg_add(out, "\"}]}");
    return length > 0 && !out->full && out->length <= FG_MESSAGE_BYTES;
}

/* An INTEGER of X.690 §8.3: no leading zeros, and one where the first bit would say that it is negative. */
static size_t add_integer(const uint8_t *number, uint8_t *der)
{
    size_t skip = 0;
    while (skip < 31 && number[skip] == 0) {
        skip++;
    }
    const size_t zero = number[skip] >= 0x80 ? 1 : 0;
    der[0] = 0x02;
    der[1] = (uint8_t)(32 - skip + zero);
    der[2] = 0;
    memcpy(der + 2 + zero, number + skip, 32 - skip);
    return 2 + zero + 32 - skip;
}

size_t fg_der_signature(const uint8_t raw[64], uint8_t *der)
{
    size_t length = add_integer(raw, der + 2);
    length += add_integer(raw + 32, der + 2 + length);
    der[0] = 0x30;
    der[1] = (uint8_t)length;
    return 2 + length;
}
