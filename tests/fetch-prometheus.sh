#!/usr/bin/env bash
# Puts `prometheus` and `promtool` into the folder $1 where they are not installed: out of Debian's package, unpacked and not
# installed, so without root. It never fails: what is missing then is said by the tests that want it.
set -euo pipefail
folder=$1

has() { type -P "$1" >/dev/null && type -P "$2" >/dev/null; }
PATH="$PATH:$folder"
has prometheus promtool && exit 0
has apt-get dpkg-deb || exit 0

echo "Fetching prometheus and promtool for the tests into $folder"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"
apt=(apt-get -qq -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o APT::Sandbox::User=root -o Acquire::Retries=1)
if (cd "$work" && "${apt[@]}" update && "${apt[@]}" download prometheus && dpkg-deb -x prometheus_*.deb .) 2>"$work/log"; then
    mv "$work/usr/bin/prometheus" "$work/usr/bin/promtool" "$folder"
else
    echo "That failed: $(tail -n 1 "$work/log")"
fi
