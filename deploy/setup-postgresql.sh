#!/usr/bin/env bash
# Sees to PostgreSQL's programs for the tests, which start a server of their own and never touch Debian's cluster.
# Where that is impossible, says so; the tests that need it then skip, loudly, and in CI they fail.
set -euo pipefail
if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; then exit 0; fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "setup: PostgreSQL is not installed, its tests will be skipped; to run them: sudo apt-get install postgresql" >&2
        exit 0
    fi
    as_root=(sudo -n)
fi
echo "setup: installing PostgreSQL for the tests" >&2
"${as_root[@]}" apt-get update -qq >/dev/null 2>&1 || true
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq postgresql >/dev/null
