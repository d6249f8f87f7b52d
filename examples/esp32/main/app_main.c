/* The ESP-IDF side of the example, for ESP-IDF 5: Wi-Fi, MQTT, memory in NVS, and the two image slots. It is NOT
   compiled or run by the project's tests; what is, stands in the fg_ files beside it. See ../README.md.

   One task does everything: MQTT events are put into a queue, and the task takes them one by one. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "esp_app_desc.h"
#include "esp_event.h"
#include "esp_http_client.h"
#include "esp_log.h"
#include "esp_netif.h"
#include "esp_ota_ops.h"
#include "esp_random.h"
#include "esp_timer.h"
#include "esp_wifi.h"
#include "fg_statement.h"
#include "freertos/FreeRTOS.h"
#include "freertos/queue.h"
#include "freertos/task.h"
#include "mbedtls/ctr_drbg.h"
#include "mbedtls/entropy.h"
#include "mbedtls/md.h"
#include "mbedtls/pk.h"
#include "mbedtls/x509_crt.h"
#include "mqtt_client.h"
#include "nvs.h"
#include "nvs_flash.h"

static const char *const TAG = "fleetgate";

extern const char broker_ca[] asm("_binary_broker_ca_pem_start");
extern const char device_pem[] asm("_binary_device_pem_start");
extern const char device_pem_end[] asm("_binary_device_pem_end");
extern const char device_key[] asm("_binary_device_key_start");
extern const char device_key_end[] asm("_binary_device_key_end");
extern const uint8_t signer_der[] asm("_binary_signer_der_start");
extern const uint8_t signer_der_end[] asm("_binary_signer_der_end");

typedef enum { CONNECTED, SUBSCRIBED, REPLY, OFFER, DISCONNECTED } kind_of_event;

typedef struct {
    kind_of_event kind;
    char *text; /* from the heap, for REPLY and OFFER */
    size_t length;
} event;

static QueueHandle_t events;
static esp_mqtt_client_handle_t client;
static nvs_handle_t memory;
static mbedtls_pk_context key;
static mbedtls_ctr_drbg_context drbg;
static char key_id[65], conn[17], boot[17], nonce[17], product[64], *chain[3];
static size_t chain_length;
static fg_device device;
static uint64_t seq;
static char payload[FG_MESSAGE_BYTES], scratch[FG_MESSAGE_BYTES + 128], message[FG_MESSAGE_BYTES + 1];

/* ---- Memory that an update and a rollback leave alone: the partition nvs. ---- */

static int64_t remembered(const char *name)
{
    int64_t value = 0;
    (void)nvs_get_i64(memory, name, &value);
    return value;
}

static void remember(const char *name, int64_t value)
{
    ESP_ERROR_CHECK(nvs_set_i64(memory, name, value));
    ESP_ERROR_CHECK(nvs_commit(memory));
}

/* How the last update ended. `result` NULL: a welcome has answered it. */
static void remember_end(const char *offer_id, const char *result, const char *reason)
{
    if (result == NULL) {
        (void)nvs_erase_key(memory, "end_result");
    } else {
        ESP_ERROR_CHECK(nvs_set_str(memory, "end_offer", offer_id));
        ESP_ERROR_CHECK(nvs_set_str(memory, "end_reason", reason));
        ESP_ERROR_CHECK(nvs_set_str(memory, "end_result", result));
    }
    ESP_ERROR_CHECK(nvs_commit(memory));
}

static bool remembered_text(const char *name, char *text, size_t size)
{
    return nvs_get_str(memory, name, text, &size) == ESP_OK;
}

/* ---- Signing. A secure element signs here instead: 64 bytes from it, then fg_der_signature. ---- */

static size_t sign(void *context, const void *bytes, size_t length, uint8_t *signature, size_t size)
{
    uint8_t digest[32];
    size_t made = 0;
    (void)context;
    if (mbedtls_md(mbedtls_md_info_from_type(MBEDTLS_MD_SHA256), bytes, length, digest) != 0 ||
        mbedtls_pk_sign(&key, MBEDTLS_MD_SHA256, digest, sizeof digest, signature, size, &made,
                        mbedtls_ctr_drbg_random, &drbg) != 0) {
        return 0;
    }
    return made; /* mbedtls makes DER itself */
}

static void random_hex(char *hex)
{
    (void)snprintf(hex, 17, "%08" PRIx32 "%08" PRIx32, esp_random(), esp_random());
}

/* The payload is in `payload`; leaves the envelope in `message`. */
static bool seal(const char *verb)
{
    fg_text out, work;
    fg_start(&out, message, sizeof message);
    fg_start(&work, scratch, sizeof scratch);
    return fg_write_envelope(&out, &work, verb, key_id, payload, sign, NULL);
}

static void publish(const char *verb)
{
    char topic[160];
    (void)snprintf(topic, sizeof topic, "%s/%s", device.topic_base, verb);
    if (seal(verb)) {
        (void)esp_mqtt_client_publish(client, topic, message, 0, 1, 0);
    }
}

static void say_presence(const char *state)
{
    fg_text out;
    fg_start(&out, payload, sizeof payload);
    fg_write_presence(&out, &device, ++seq, state);
    publish("presence");
}

static void say_hello(const char *challenge, bool with_chain)
{
    static char offer_id[65], result[16], reason[33];
    struct timeval now;
    gettimeofday(&now, NULL);
    random_hex(nonce);
    const bool ended = remembered_text("end_result", result, sizeof result);
    const bool found = ended && remembered_text("end_offer", offer_id, sizeof offer_id);
    const bool why = ended && remembered_text("end_reason", reason, sizeof reason) && reason[0] != '\0';
    const fg_hello hello = {
        .nonce = nonce,
        .challenge = challenge,
        .ts = (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000, /* 1970 costs one challenge */
        .chain = (const char *const *)chain,
        .chain_length = with_chain ? chain_length : 0,
        .last_offer_id = found ? offer_id : NULL,
        .last_result = result,
        .last_reason = why ? reason : NULL,
    };
    fg_text out;
    fg_start(&out, payload, sizeof payload);
    fg_write_hello(&out, &device, ++seq, &hello);
    publish("hello");
}

/* ---- Firmware. ---- */

/* Downloads into the other slot. Returns NULL, or the reason; the slot does not start before it is chosen. */
static const char *download(const char *url, const fg_artifact *artifact, const esp_partition_t *slot)
{
    static char part[4096];
    esp_ota_handle_t ota;
    uint8_t digest[32];
    int64_t length = 0;
    const char *reason = NULL;
    mbedtls_md_context_t sha256;
    const esp_http_client_config_t config = {.url = url, .cert_pem = broker_ca, .timeout_ms = 60000};
    if (artifact->size > slot->size) {
        return "no_space";
    }
    esp_http_client_handle_t http = esp_http_client_init(&config);
    if (http == NULL || esp_http_client_open(http, 0) != ESP_OK || esp_http_client_fetch_headers(http) < 0) {
        reason = "download_failed";
    } else if (esp_http_client_get_status_code(http) != 200) {
        const int status = esp_http_client_get_status_code(http);
        reason = status == 403 || status == 404 || status == 410 ? "url_refused" : "download_failed";
    } else if (esp_ota_begin(slot, OTA_SIZE_UNKNOWN, &ota) != ESP_OK) {
        reason = "install_failed";
    } else {
        mbedtls_md_init(&sha256);
        (void)mbedtls_md_setup(&sha256, mbedtls_md_info_from_type(MBEDTLS_MD_SHA256), 0);
        (void)mbedtls_md_starts(&sha256);
        int got;
        while (reason == NULL && (got = esp_http_client_read(http, part, sizeof part)) > 0) {
            length += got;
            (void)mbedtls_md_update(&sha256, (const uint8_t *)part, got);
            if (length > artifact->size) {
                reason = "digest_mismatch";
            } else if (esp_ota_write(ota, part, got) != ESP_OK) {
                reason = "install_failed";
            }
        }
        (void)mbedtls_md_finish(&sha256, digest);
        mbedtls_md_free(&sha256);
        if (reason == NULL && length < artifact->size) {
            reason = "download_failed";
        } else if (reason == NULL && memcmp(digest, artifact->sha256, sizeof digest) != 0) {
            reason = "digest_mismatch";
        }
        if (reason != NULL) {
            (void)esp_ota_abort(ota);
        } else if (esp_ota_end(ota) != ESP_OK) {
            reason = "install_failed";
        }
    }
    if (http != NULL) {
        esp_http_client_cleanup(http);
    }
    return reason;
}

static const char *install(const fg_offer *offer, fg_statement *statement)
{
    static uint8_t work[FG_STATEMENT_BYTES + 128];
    const fg_signer signers[] = {{.der = signer_der, .length = (size_t)(signer_der_end - signer_der)}};
    const fg_known known = {
        .signers = signers,
        .signer_count = 1,
        .product = product,
        .model = device.model,
        .highest_seq = remembered("highest"),
        .running_seq = device.bundle_seq,
    };
    const char *reason = fg_verify_statement(statement, offer->statement, &known, work, sizeof work);
    if (reason != NULL) {
        return reason;
    }
    if (statement->artifact_count != 1) {
        return "install_failed"; /* this device is made of one image */
    }
    const char *url = fg_url_of(offer, statement->artifacts[0].name);
    const esp_partition_t *slot = esp_ota_get_next_update_partition(NULL);
    for (int tries = 0; url != NULL && tries < 3; tries++) {
        reason = download(url, &statement->artifacts[0], slot);
        if (reason == NULL || strcmp(reason, "download_failed") != 0) {
            break;
        }
        vTaskDelay(pdMS_TO_TICKS(5000 + esp_random() % 5000));
    }
    if (url == NULL) {
        reason = "url_refused";
    }
    return reason != NULL ? reason : esp_ota_set_boot_partition(slot) == ESP_OK ? NULL : "install_failed";
}

/* Returns whether a hello is due: to say how it ended, or for a fresh address. */
static bool take_offer(const cJSON *json)
{
    static fg_statement statement;
    static char retried[65], done[65];
    fg_offer offer;
    if (product[0] == '\0' || !fg_read_offer(&offer, json) || offer.revision < remembered("revision")) {
        return false;
    }
    remember("revision", offer.revision);
    if (offer.cancelled || (remembered_text("done", done, sizeof done) && strcmp(done, offer.offer_id) == 0)) {
        return false;
    }
    const char *reason = install(&offer, &statement);
    ESP_LOGI(TAG, "offer %s: %s", offer.offer_id, reason == NULL ? "installed" : reason);
    if (reason != NULL && strcmp(reason, "url_refused") == 0 && strcmp(retried, offer.offer_id) != 0) {
        strcpy(retried, offer.offer_id);
        return true;
    }
    ESP_ERROR_CHECK(nvs_set_str(memory, "done", offer.offer_id));
    if (reason != NULL) {
        const bool failed = strstr("download_failed url_refused digest_mismatch install_failed no_space", reason);
        remember_end(offer.offer_id, failed ? "failed" : "rejected", reason);
        return true;
    }
    /* Before the restart. Should the new image not come up, the bootloader starts the old one, which finds that it
       is not `next_seq`, and says so; `highest` stays where it is. */
    remember("highest", statement.bundle_seq);
    remember("next_seq", statement.bundle_seq);
    ESP_ERROR_CHECK(nvs_set_str(memory, "next", statement.version));
    remember_end(offer.offer_id, "succeeded", "");
    say_presence("rebooting");
    (void)esp_mqtt_client_disconnect(client);
    esp_restart();
}

/* ---- The connection. ---- */

static void on_mqtt(void *context, esp_event_base_t base, int32_t id, void *data)
{
    static char *text;
    static kind_of_event kind;
    const esp_mqtt_event_handle_t got = data;
    event happened = {0};
    switch ((esp_mqtt_event_id_t)id) {
    case MQTT_EVENT_CONNECTED:
        happened.kind = CONNECTED;
        break;
    case MQTT_EVENT_SUBSCRIBED:
        happened.kind = SUBSCRIBED;
        break;
    case MQTT_EVENT_DISCONNECTED:
        happened.kind = DISCONNECTED;
        break;
    case MQTT_EVENT_DATA: /* long messages come in parts, and only the first has the topic */
        if (got->current_data_offset == 0) {
            free(text);
            text = got->total_data_len <= FG_MESSAGE_BYTES ? malloc(got->total_data_len + 1) : NULL;
            kind = got->topic_len > 6 && memcmp(got->topic + got->topic_len - 6, "/offer", 6) == 0 ? OFFER : REPLY;
        }
        if (text == NULL) {
            return;
        }
        memcpy(text + got->current_data_offset, got->data, got->data_len);
        if (got->current_data_offset + got->data_len < got->total_data_len) {
            return;
        }
        happened = (event){.kind = kind, .text = text, .length = got->total_data_len};
        text = NULL;
        break;
    default:
        return;
    }
    (void)context;
    (void)base;
    if (xQueueSend(events, &happened, 0) != pdTRUE) {
        free(happened.text); /* a hello brings it again */
    }
}

static void connect_now(void)
{
    static char will[FG_MESSAGE_BYTES + 1], topic[160];
    fg_text out;
    if (client != NULL) {
        esp_mqtt_client_destroy(client);
    }
    seq = 0;
    random_hex(conn);
    fg_start(&out, payload, sizeof payload);
    fg_write_presence(&out, &device, 0, "offline"); /* signed before CONNECT, for the `conn` that it will have */
    (void)seal("presence");
    strcpy(will, message);
    (void)snprintf(topic, sizeof topic, "%s/presence", device.topic_base);
    const esp_mqtt_client_config_t config = {
        .broker.address = {.hostname = CONFIG_FG_HOST, .port = CONFIG_FG_PORT, .transport = MQTT_TRANSPORT_OVER_SSL},
        .broker.verification.certificate = broker_ca,
        .credentials.authentication = {.certificate = device_pem, .key = device_key},
        .session = {.last_will = {.topic = topic, .msg = will, .qos = 1}, .protocol_ver = MQTT_PROTOCOL_V_3_1_1},
        .network.disable_auto_reconnect = true, /* a new connection has a new `conn`, and so a new will */
        .buffer = {.size = 4096, .out_size = FG_MESSAGE_BYTES + 1024},
    };
    client = esp_mqtt_client_init(&config);
    ESP_ERROR_CHECK(esp_mqtt_client_register_event(client, ESP_EVENT_ANY_ID, on_mqtt, NULL));
    ESP_ERROR_CHECK(esp_mqtt_client_start(client));
}

static int64_t milliseconds(void)
{
    return esp_timer_get_time() / 1000;
}

/* Section 11: before repetition `tries`, a random time. */
static int64_t pause_of(int tries)
{
    const uint32_t seconds = tries > 6 ? 600 : 5u << tries;
    return esp_random() % (1000 * seconds);
}

static void live(void)
{
    bool connected = false, welcome = false, with_chain = true;
    int tries = 0, challenges = 0;
    int64_t due = milliseconds(), every = 0, interval = 0;
    for (;;) {
        event happened;
        const int64_t left = due - milliseconds();
        if (xQueueReceive(events, &happened, left > 0 ? pdMS_TO_TICKS(left) : 0) != pdTRUE) {
            if (left > 0) {
                continue;
            }
            if (welcome) {
                say_presence("online");
                interval += every;
                due = interval + esp_random() % every;
            } else {
                if (connected) {
                    challenges = 0;
                    say_hello(NULL, with_chain);
                } else {
                    connect_now();
                }
                due = milliseconds() + pause_of(++tries);
            }
            continue;
        }
        bool hello = false;
        cJSON *offer = NULL;
        if (happened.kind == CONNECTED) {
            char topic[160];
            (void)snprintf(topic, sizeof topic, "%s/offer", device.topic_base);
            (void)esp_mqtt_client_subscribe(client, topic, 1);
            (void)snprintf(topic, sizeof topic, "%s/reply", device.topic_base);
            (void)esp_mqtt_client_subscribe(client, topic, 1);
        } else if (happened.kind == SUBSCRIBED && !connected) {
            connected = hello = true; /* the broker keeps the order; the answer to the reply's may still be under way */
        } else if (happened.kind == DISCONNECTED) {
            connected = welcome = false;
            due = milliseconds() + pause_of(++tries);
        } else if (happened.kind == OFFER) {
            offer = cJSON_ParseWithLength(happened.text, happened.length);
        } else if (happened.kind == REPLY && !welcome) {
            fg_reply reply;
            if (fg_read_reply(&reply, happened.text, happened.length, nonce)) {
                if (reply.result == FG_CHALLENGE && challenges < 3) {
                    challenges++;
                    with_chain |= reply.chain_required;
                    say_hello(reply.challenge, with_chain);
                    due = milliseconds() + pause_of(++tries);
                } else if (reply.result == FG_WELCOME) {
                    welcome = true;
                    with_chain = false;
                    tries = challenges = 0;
                    every = 1000 * (int64_t)reply.heartbeat_seconds;
                    interval = milliseconds();
                    due = interval + esp_random() % every;
                    strlcpy(product, reply.product, sizeof product);
                    remember_end("", NULL, "");
                    (void)esp_ota_mark_app_valid_cancel_rollback(); /* it came up, and can take a next one */
                    offer = cJSON_Duplicate(reply.offer, true);
                } else if (reply.result != FG_NOT_FOR_US) {
                    due += 1000 * (int64_t)reply.retry_after_seconds;
                }
                fg_free_reply(&reply);
            }
        }
        free(happened.text);
        if (offer != NULL) {
            hello |= take_offer(offer);
            cJSON_Delete(offer);
        }
        if (hello) {
            welcome = false;
            challenges = 0;
            say_hello(NULL, with_chain);
            due = milliseconds() + pause_of(++tries);
        }
    }
}

/* ---- The start. ---- */

static void load_identity(void)
{
    static uint8_t der[512];
    static mbedtls_entropy_context entropy;
    uint8_t digest[32];
    mbedtls_x509_crt certificates;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&drbg);
    mbedtls_pk_init(&key);
    mbedtls_x509_crt_init(&certificates);
    ESP_ERROR_CHECK(mbedtls_ctr_drbg_seed(&drbg, mbedtls_entropy_func, &entropy, NULL, 0));
    ESP_ERROR_CHECK(mbedtls_pk_parse_key(&key, (const uint8_t *)device_key, device_key_end - device_key, NULL, 0,
                                         mbedtls_ctr_drbg_random, &drbg));
    ESP_ERROR_CHECK(
        mbedtls_x509_crt_parse(&certificates, (const uint8_t *)device_pem, device_pem_end - device_pem));
    const int length = mbedtls_pk_write_pubkey_der(&key, der, sizeof der); /* it writes to the end of the buffer */
    assert(length > 0);
    (void)mbedtls_md(mbedtls_md_info_from_type(MBEDTLS_MD_SHA256), der + sizeof der - length, length, digest);
    for (size_t i = 0; i < sizeof digest; i++) {
        (void)snprintf(key_id + 2 * i, 3, "%02x", digest[i]);
    }
    for (const mbedtls_x509_crt *one = &certificates; one != NULL && chain_length < 3; one = one->next) {
        const size_t size = one->raw.len / 3 * 4 + 8;
        fg_text text;
        fg_start(&text, malloc(size), size);
        fg_add_base64(&text, one->raw.p, one->raw.len);
        chain[chain_length++] = text.data;
    }
    mbedtls_x509_crt_free(&certificates);
}

static void on_wifi(void *context, esp_event_base_t base, int32_t id, void *data)
{
    if (base == WIFI_EVENT && (id == WIFI_EVENT_STA_START || id == WIFI_EVENT_STA_DISCONNECTED)) {
        (void)esp_wifi_connect();
    }
    (void)context;
    (void)data;
}

static void start_wifi(void)
{
    ESP_ERROR_CHECK(esp_netif_init());
    ESP_ERROR_CHECK(esp_event_loop_create_default());
    esp_netif_create_default_wifi_sta();
    const wifi_init_config_t init = WIFI_INIT_CONFIG_DEFAULT();
    ESP_ERROR_CHECK(esp_wifi_init(&init));
    ESP_ERROR_CHECK(esp_event_handler_register(WIFI_EVENT, ESP_EVENT_ANY_ID, on_wifi, NULL));
    wifi_config_t config = {.sta = {.ssid = CONFIG_FG_WIFI_SSID, .password = CONFIG_FG_WIFI_PASSWORD}};
    ESP_ERROR_CHECK(esp_wifi_set_mode(WIFI_MODE_STA));
    ESP_ERROR_CHECK(esp_wifi_set_config(WIFI_IF_STA, &config));
    ESP_ERROR_CHECK(esp_wifi_start());
}

void app_main(void)
{
    static char next[65], reason[] = "boot_failed", offer_id[65], result[16];
    ESP_ERROR_CHECK(nvs_flash_init());
    ESP_ERROR_CHECK(nvs_open("fleetgate", NVS_READWRITE, &memory));
    load_identity();
    random_hex(boot);
    device = (fg_device){
        .audience = CONFIG_FG_AUDIENCE,
        .topic_base = CONFIG_FG_TOPIC_BASE,
        .conn = conn,
        .boot = boot,
        .model = CONFIG_FG_MODEL,
        .version = esp_app_get_description()->version, /* from the image itself */
    };
    if (remembered_text("next", next, sizeof next)) {
        if (strcmp(next, device.version) == 0) {
            remember("running_seq", remembered("next_seq"));
        } else if (remembered_text("end_result", result, sizeof result) && strcmp(result, "succeeded") == 0 &&
                   remembered_text("end_offer", offer_id, sizeof offer_id)) {
            remember_end(offer_id, "rolled_back", reason); /* the bootloader went back to this image */
        }
    }
    device.bundle_seq = remembered("running_seq");
    events = xQueueCreate(8, sizeof(event));
    start_wifi();
    live();
}
