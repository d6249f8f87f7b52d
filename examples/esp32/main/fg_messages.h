/* What the device says (sections 6 and 8), and what it reads (sections 7 and 14). Needs cJSON, which ESP-IDF has. */
#ifndef FG_MESSAGES_H
#define FG_MESSAGES_H

#include "cJSON.h"
#include "fg_envelope.h"

/* Who the device is, and what counts its messages. All text is the caller's. */
typedef struct {
    const char *audience, *topic_base; /* such as mqtt.example.com and fg/v1/pump-17 */
    const char *conn, *boot;           /* 16 hex digits each */
    const char *model, *revision;      /* revision may be NULL */
    const char *version;               /* of the image that runs, taken from the image itself */
    int64_t bundle_seq;                /* of that image; 0 if it came from no bundle */
} fg_device;

/* What a hello has besides. Pointers may be NULL. */
typedef struct {
    const char *nonce;
    int64_t ts;            /* ms; 0: no clock */
    const char *challenge; /* goes before ts */
    const char *const *chain; /* base64 of DER, own certificate first */
    size_t chain_length;
    const char *last_offer_id, *last_result, *last_reason;
} fg_hello;

void fg_write_hello(fg_text *out, const fg_device *device, uint64_t seq, const fg_hello *hello);
void fg_write_presence(fg_text *out, const fg_device *device, uint64_t seq, const char *state);

typedef enum { FG_NOT_FOR_US, FG_WELCOME, FG_PENDING, FG_CHALLENGE, FG_REJECTED, FG_BUSY } fg_result;

/* A reply. Its texts belong to `document`, which fg_free_reply frees. */
typedef struct {
    cJSON *document;
    fg_result result;
    const char *challenge, *product;
    bool chain_required;
    uint32_t retry_after_seconds, heartbeat_seconds; /* within the bounds of section 11 */
    const cJSON *offer;
} fg_reply;

/* `nonce` is that of the newest unanswered hello. Returns false where the reply cannot be read. */
bool fg_read_reply(fg_reply *reply, const char *text, size_t length, const char *nonce);
void fg_free_reply(fg_reply *reply);

/* An offer, from a welcome or from the offer topic. Its texts belong to the JSON that was read. */
typedef struct {
    const char *offer_id;
    int64_t revision;
    bool cancelled;
    const cJSON *statement, *artifacts;
} fg_offer;

bool fg_read_offer(fg_offer *offer, const cJSON *json);
const char *fg_url_of(const fg_offer *offer, const char *artifact); /* http or https, else NULL */

/* Reading JSON: NULL, or false, where a member is missing or of another type. */
const char *fg_text_of(const cJSON *object, const char *name);
bool fg_integer_of(const cJSON *object, const char *name, int64_t *value); /* 0 to 2^53-1 */

#endif
