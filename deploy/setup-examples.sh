#!/usr/bin/env bash
# Sees to what the example clients need for their tests: command-line tools, a C compiler with its libraries, npm packages.
# Quick when done. Where something cannot be installed, says so; its tests then skip, loudly, and in CI they fail.
set -euo pipefail
node=examples/node

# Debian's packages, each with the file or the command that shows that it is there.
missing=()
while read -r package what; do
    command -v "$what" >/dev/null || compgen -G "$what" >/dev/null || missing+=("$package")
done <<'END'
jq jq
curl curl
openssl openssl
mosquitto-clients mosquitto_rr
shellcheck shellcheck
gcc gcc
make make
libc6-dev /usr/include/stdlib.h
libmbedtls-dev /usr/include/mbedtls/pk.h
libcjson-dev /usr/include/cjson/cJSON.h
libsodium-dev /usr/include/sodium.h
nodejs node
npm npm
END
if [ "${#missing[@]}" -gt 0 ]; then
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then as_root=(sudo -n); fi
    echo "setup: installing for the examples' tests: ${missing[*]}" >&2
    if ! { "${as_root[@]}" apt-get update -qq || true
           DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "${missing[@]}"; } >/dev/null 2>&1; then
        echo "setup: that did not work, and tests of examples will be skipped; to run them: sudo apt-get install ${missing[*]}" >&2
    fi
fi

# npm leaves a copy of the lock file beside what it installed; an older one than ours says that there is work.
if command -v npm >/dev/null && [ ! "$node/node_modules/.package-lock.json" -nt "$node/package-lock.json" ]; then
    echo "setup: npm packages of $node" >&2
    if npm ci --prefix "$node" --no-audit --no-fund --ignore-scripts >/dev/null 2>&1; then
        touch "$node/node_modules/.package-lock.json"
    else
        echo "setup: npm ci in $node did not work, and its tests will be skipped" >&2
    fi
fi
