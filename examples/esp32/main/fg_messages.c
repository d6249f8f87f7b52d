#include "fg_messages.h"

#include <inttypes.h>
#include <string.h>

static void begin(fg_text *out, const fg_device *device, const char *verb, uint64_t seq)
{
    fg_add(out, "{\"v\":1,\"aud\":");
    fg_add_json(out, device->audience);
    fg_add(out, ",\"topic\":\"%s/%s\",\"conn\":\"%s\",\"boot\":\"%s\",\"seq\":%" PRIu64, device->topic_base, verb,
           device->conn, device->boot, seq);
}

void fg_write_hello(fg_text *out, const fg_device *device, uint64_t seq, const fg_hello *hello)
{
    begin(out, device, "hello", seq);
    if (hello->challenge != NULL) {
        fg_add(out, ",\"challenge\":");
        fg_add_json(out, hello->challenge);
    } else if (hello->ts != 0) {
        fg_add(out, ",\"ts\":%" PRId64, hello->ts);
    }
    fg_add(out, ",\"nonce\":\"%s\"", hello->nonce);
    for (size_t i = 0; i < hello->chain_length; i++) {
        fg_add(out, "%s\"%s\"", i == 0 ? ",\"chain\":[" : ",", hello->chain[i]);
    }
    fg_add(out, "%s,\"hardware\":{\"model\":", hello->chain_length > 0 ? "]" : "");
    fg_add_json(out, device->model);
    if (device->revision != NULL) {
        fg_add(out, ",\"revision\":");
        fg_add_json(out, device->revision);
    }
    fg_add(out, "},\"firmware\":{\"version\":");
    fg_add_json(out, device->version);
    if (device->bundle_seq > 0) {
        fg_add(out, ",\"bundle_seq\":%" PRId64, device->bundle_seq);
    }
    fg_add(out, "}");
    if (hello->last_offer_id != NULL) {
        fg_add(out, ",\"last_update\":{\"offer_id\":");
        fg_add_json(out, hello->last_offer_id);
        fg_add(out, ",\"result\":\"%s\"", hello->last_result);
        if (hello->last_reason != NULL) {
            fg_add(out, ",\"reason\":\"%s\"", hello->last_reason);
        }
        fg_add(out, "}");
    }
    fg_add(out, "}");
}

void fg_write_presence(fg_text *out, const fg_device *device, uint64_t seq, const char *state)
{
    begin(out, device, "presence", seq);
    fg_add(out, ",\"state\":\"%s\"}", state);
}

const char *fg_text_of(const cJSON *object, const char *name)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));
}

bool fg_integer_of(const cJSON *object, const char *name, int64_t *value)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 9007199254740991.0)) {
        return false;
    }
    *value = (int64_t)item->valuedouble;
    return (double)*value == item->valuedouble;
}

static fg_result result_of(const char *word)
{
    static const char *const WORDS[] = {
        [FG_WELCOME] = "welcome", [FG_PENDING] = "pending", [FG_CHALLENGE] = "challenge", [FG_REJECTED] = "rejected"};
    for (int i = FG_WELCOME; i <= FG_REJECTED; i++) {
        if (strcmp(word, WORDS[i]) == 0) {
            return (fg_result)i;
        }
    }
    return FG_BUSY; /* section 7: an unknown one too */
}

bool fg_read_reply(fg_reply *reply, const char *text, size_t length, const char *nonce)
{
    *reply = (fg_reply){.document = cJSON_ParseWithLength(text, length), .result = FG_NOT_FOR_US};
    const cJSON *json = reply->document, *answered = cJSON_GetObjectItemCaseSensitive(json, "for");
    const char *result = fg_text_of(json, "result"), *reason = fg_text_of(json, "reason");
    if (result == NULL || answered == NULL) {
        fg_free_reply(reply);
        return false;
    }
    if (!cJSON_IsNull(answered) && (!cJSON_IsString(answered) || strcmp(answered->valuestring, nonce) != 0)) {
        return true;
    }
    int64_t seconds;
    reply->result = result_of(result);
    reply->chain_required = reason != NULL && strcmp(reason, "chain_required") == 0;
    reply->challenge = fg_text_of(json, "challenge");
    reply->product = fg_text_of(json, "product");
    reply->offer = cJSON_GetObjectItemCaseSensitive(json, "offer");
    if (fg_integer_of(json, "retry_after_seconds", &seconds)) {
        reply->retry_after_seconds = seconds > 3600 ? 3600 : (uint32_t)seconds;
    }
    reply->heartbeat_seconds = 10;
    if (fg_integer_of(json, "heartbeat_seconds", &seconds) && seconds > 10) {
        reply->heartbeat_seconds = seconds > 86400 ? 86400 : (uint32_t)seconds;
    }
    if (reply->result == FG_CHALLENGE && reply->challenge == NULL) {
        reply->result = FG_BUSY;
    }
    if (reply->result == FG_WELCOME && reply->product == NULL) {
        reply->result = FG_BUSY;
    }
    return true;
}

void fg_free_reply(fg_reply *reply)
{
    cJSON_Delete(reply->document);
    *reply = (fg_reply){.result = FG_NOT_FOR_US};
}

bool fg_read_offer(fg_offer *offer, const cJSON *json)
{
    *offer = (fg_offer){
        .offer_id = fg_text_of(json, "offer_id"),
        .cancelled = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "cancelled")),
        .statement = cJSON_GetObjectItemCaseSensitive(json, "statement"),
        .artifacts = cJSON_GetObjectItemCaseSensitive(json, "artifacts"),
    };
    return offer->offer_id != NULL && strlen(offer->offer_id) <= 64 &&
           fg_integer_of(json, "revision", &offer->revision) &&
           (offer->cancelled || (cJSON_IsObject(offer->statement) && cJSON_IsArray(offer->artifacts)));
}

const char *fg_url_of(const fg_offer *offer, const char *artifact)
{
    const cJSON *entry;
    cJSON_ArrayForEach(entry, offer->artifacts)
    {
        const char *name = fg_text_of(entry, "name"), *url = fg_text_of(entry, "url");
        if (name != NULL && url != NULL && strcmp(name, artifact) == 0 &&
            (strncmp(url, "https://", 8) == 0 || strncmp(url, "http://", 7) == 0)) {
            return url;
        }
    }
    return NULL;
}
