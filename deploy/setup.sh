#!/usr/bin/env bash
# Makes the virtual environment from the lock file and sees to mosquitto. Repeatable; quick when done.
set -euo pipefail
venv=${1:-.venv}
python=${PYTHON:-python3}

# Runs apt-get where that is possible: as root, or through sudo that asks for no password.
apt_install() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    command -v apt-get >/dev/null || return 1
    "${as_root[@]}" apt-get update -qq >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "$@" >/dev/null
}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: Python 3.11 or newer is needed, $("$python" --version) was found; set PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "setup: installing python3-venv" >&2
    apt_install python3-venv || { echo "setup: please run: sudo apt-get install python3-venv" >&2; exit 1; }
fi
if ! command -v mosquitto >/dev/null && [ ! -x /usr/sbin/mosquitto ]; then
    echo "setup: installing mosquitto" >&2
    apt_install mosquitto mosquitto-clients || { echo "setup: please run: sudo apt-get install mosquitto mosquitto-clients" >&2; exit 1; }
    # Debian starts a broker of its own on 1883 where systemd runs; ours never uses that one.
fi

echo "setup: $venv from requirements.lock" >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
