#!/bin/sh
# Makes target/sdk-venv: a Python environment with oVirt's official SDK, for tests/sdk.
#
#   scripts/sdk-venv.sh            make it; say what is missing on this machine
#   scripts/sdk-venv.sh --install  also install what is missing (Debian or Ubuntu, as root)
#
# The SDK's source distribution builds a C module against libxml2 and asks for pycurl,
# which is built against libcurl and OpenSSL. Nothing outside target/ is written without
# --install; a second run with everything in place does nothing.
set -eu

sdk=ovirt-engine-sdk-python
version=4.6.3
packages="gcc python3-dev python3-venv libxml2-dev libcurl4-openssl-dev libssl-dev"

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/target/sdk-venv
install=no
case "${1:-}" in
"") ;;
--install) install=yes ;;
-h | --help)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
*)
    echo "sdk-venv: unknown option $1" >&2
    exit 2
    ;;
esac

# The environment counts only when the SDK can be imported from it.
works() {
    [ -x "$venv/bin/python3" ] &&
        "$venv/bin/python3" - "$version" 2>/dev/null <<'PY'
import sys
import ovirtsdk4, ovirtsdk4.types
from ovirtsdk4.version import VERSION
sys.exit(VERSION != sys.argv[1])
PY
}

if works; then
    echo "$venv"
    exit 0
fi

missing=
if command -v dpkg-query >/dev/null; then
    for package in $packages; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || missing="$missing $package"
    done
fi
if [ -n "$missing" ]; then
    if [ "$install" = no ]; then
        echo "sdk-venv: missing packages:$missing" >&2
        echo "sdk-venv: install them, or run: scripts/sdk-venv.sh --install" >&2
        exit 1
    fi
    apt-get update -q >&2
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >&2
fi

rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
python3 -m venv "$venv"
"$venv/bin/python3" -m pip install -q --disable-pip-version-check "$sdk==$version" >&2
works || {
    echo "sdk-venv: the SDK was installed into $venv, but does not import" >&2
    exit 1
}
echo "$venv"
