# What device.sh does with the offer in $work/offer: docs/protocol.md, sections 13 to 16. Not to be run by itself.
# shellcheck shell=sh disable=SC2016,SC2034,SC2154

end() { # $1: the result, $2: the reason. The next hello says it too.
    result=$1 reason=$2 && echo "$version_offered: $result $reason"
    keep '.last_update = ($ENV | {offer_id, result, reason} | map_values(select(. != "")))' && exit
}
verify() { # says why the statement must not be installed, or nothing
    kind=application/vnd.fleetgate.bundle.v1+json keyid=$(jq -r '.statement.signatures[0].keyid' "$work/offer")
    jq -r .statement.payload "$work/offer" | base64 -d >"$work/statement"
    jq -r '.statement.signatures[0].sig' "$work/offer" | base64 -d >"$work/sig"
    encode $kind "$work/statement" >"$work/signed"
    awk '/BEGIN/ { n++ } { print > (ENVIRON["work"] "/signer" n) }' "$signers"
    for signer in "$work"/signer*; do [ "$(key_id -pubin -in "$signer")" != "$keyid" ] || break; done
    [ "$(key_id -pubin -in "$signer")" = "$keyid" ] &&
        openssl pkeyutl -verify -rawin -pubin -inkey "$signer" -in "$work/signed" -sigfile "$work/sig" >"$work/log" &&
        jq -r --slurpfile kept "$state/kept.json" --slurpfile firmware "$state/version.json" '
            if .v != 1 or (.bundle_seq | type) != "number" or (.artifacts | length) < 1 or
                any(.artifacts[].name; test("\\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\\z") | not) then "statement_invalid"
            elif .product != $ENV.product then "wrong_product"
            elif .bundle_seq <= ([$kept[0].highest, $firmware[0].bundle_seq] | max) then "not_above_installed"
            elif .hardware // [] | length > 0 and all(.[]; .model != $ENV.model or
                (.revisions // [] | length > 0 and (index($ENV.revision) | not))) then "wrong_hardware"
            elif (.floor // 0) > $firmware[0].bundle_seq then "below_floor"
            else empty end' "$work/statement" || echo statement_invalid
}

offer_id=$(jq -r .offer_id "$work/offer") offered=$(jq .revision "$work/offer")
version_offered=$(jq -r .version "$work/offer")
[ "$offered" -ge "$(jq .revision "$state/kept.json")" ] || exit 0 # an older one that came late
keep '.revision = ($ENV.offered | tonumber)'
refused=$(verify) || refused=statement_invalid
[ -z "$refused" ] || end rejected "$refused"

jq -r --slurpfile offer "$work/offer" '.artifacts[] | .name as $name | [.name, .sha256, .size,
    ($offer[0].artifacts[] | select(.name == $name).url)] | @tsv' "$work/statement" >"$work/artifacts"
while read -r name sha256 size url; do # name, digest and size are the signed ones, never the offer's
    curl -fgsS --proto =http,https --cacert "$ca" --retry 5 --max-filesize "$size" --url "$url" \
        -o "$work/images/$name" || exit 75 # the next hello brings fresh addresses
    [ "$(sha256sum <"$work/images/$name" | cut -c1-64)" = "$sha256" ] || end failed digest_mismatch
done <"$work/artifacts"
cp "$work"/images/* "$state/images/"
jq -c '{version, bundle_seq}' "$work/statement" >"$state/version.new" && mv "$state/version.new" "$state/version.json"
bundle_seq=$(jq .bundle_seq "$state/version.json") && keep '.highest = ([.highest, ($ENV.bundle_seq | tonumber)] | max)'
end succeeded ''
