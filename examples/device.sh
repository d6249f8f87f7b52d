#!/bin/sh
# A level-1 device of Fleetgate, from docs/protocol.md alone. One run: a hello, its reply, the update that it brings.
# Usage: device.sh ./CONFIG [options of mosquitto_rr, such as -V mqttv311]. Exit code 75 means: run it again, later.
# CONFIG is shell: host= ca= cert= key= signers= state= and, where it differs, what the defaults below say.
# shellcheck disable=SC2016,SC2034,SC2154 # -a exports what is assigned: jq has it in $ENV
set -eua
port=8883 audience='' prefix=fg/v1 model=pump revision='' version=1.0.0 digest=''
# shellcheck source=/dev/null
. "$1" && shift
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT && mkdir -p "$state/images" "$work/images"
[ -f "$state/version.json" ] || jq -n '{version: $ENV.version, bundle_seq: 0}' >"$state/version.json"
[ -f "$state/kept.json" ] || echo '{"highest": 0, "revision": 0}' >"$state/kept.json"

random() { od -An -N8 -tx1 /dev/urandom | tr -d ' \n'; }
text() { base64 <"$1" | tr -d '\n'; }
key_id() { openssl pkey "$@" -pubout -outform DER | sha256sum | cut -c1-64; }
encode() { printf 'DSSEv1 %d %s %d ' ${#1} "$1" "$(wc -c <"$2")" && cat "$2"; } # section 4: what is signed
keep() { jq -c "$1" "$state/kept.json" >"$state/kept.new" && mv "$state/kept.new" "$state/kept.json"; }
chain() { # may be left out once this certificate was welcomed
    cmp -s "$cert" "$state/welcomed" ||
        jq -Rs '{chain: [scan("BEGIN CERTIFICATE-+([^-]+)-+END")[0] | gsub("\\s"; "")]}' "$cert"
}
hello() { # $proof: why it is fresh, or nothing; arguments: options of mosquitto_rr
    kind=application/vnd.fleetgate.hello.v1+json nonce=$(random) conn=$(random)
    { echo "$proof" && chain && jq '{last_update} | map_values(values)' "$state/kept.json"; } |
        jq -csj --slurpfile firmware "$state/version.json" 'add + ($ENV | {v: 1, aud: .audience,
            topic: "\(.base)/hello", conn, boot, seq: 1, nonce, stays: false, firmware: $firmware[0],
            hardware: {model, revision} | map_values(select(. != ""))})' >"$work/payload"
    encode $kind "$work/payload" >"$work/signed"
    openssl pkeyutl -sign -rawin ${digest:+-digest "$digest"} -inkey "$key" -in "$work/signed" -out "$work/sig"
    payload=$(text "$work/payload") sig=$(text "$work/sig") keyid=$(key_id -in "$key")
    envelope=$(jq -cn '$ENV | {payloadType: .kind, payload, signatures: [{keyid, sig}]}')
    mosquitto_rr -h "$host" -p "$port" --cafile "$ca" --cert "$cert" --key "$key" -q 1 -W 60 "$@" \
        -t "$base/hello" -e "$base/reply" -m "$envelope" >"$work/reply" || exit 75
    said=$(jq -r 'select(.for == $ENV.nonce or .for == null) | "\(.result) \(.reason // "")"' "$work/reply")
    echo "$said"
}

audience=${audience:-$host} boot=$(random) proof="{\"ts\": $(date +%s)000}"
base=$prefix/$(openssl x509 -in "$cert" -noout -subject -nameopt multiline | sed -n 's/^ *commonName *= //p')
case $(openssl pkey -in "$key" -noout -text_pub) in *secp384r1*) digest=sha384 ;; esac
hello "$@"
for answer in 1 2 3; do
    [ "${said%% *}" = challenge ] || break
    [ "$said" != 'challenge chain_required' ] || rm -f "$state/welcomed"
    proof=$(jq -c '{challenge}' "$work/reply") && hello "$@"
done
if [ "${said%% *}" != welcome ]; then
    sleep "$(jq '[.retry_after_seconds // 0, 3600] | min' "$work/reply")" && exit 75
fi
cp "$cert" "$state/welcomed" && product=$(jq -r .product "$work/reply") && keep 'del(.last_update)'
# shellcheck source=examples/device-firmware.sh
if jq -e .offer "$work/reply" >"$work/offer"; then . "$(dirname "$0")/device-firmware.sh"; fi
