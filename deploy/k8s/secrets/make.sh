#!/bin/sh
# Writes the secrets of a cluster into this folder, for nobody else to read. A file that is there stays as it is: delete it
# to have it made anew.
set -eu
umask 077
cd "$(dirname "$0")"

for name in ray-token reward-token redis-password gcs-password; do
    [ -s "$name" ] || head -c 32 /dev/urandom | od -A n -t x1 | tr -d ' \n' >"$name"
done

# Redis keeps digests only. Who has no password may ask whether it lives; runs have their keys, Ray's GCS has its own.
digest() { sha256sum <"$1" | cut -d ' ' -f 1; }
{
    echo "user default on nopass resetkeys resetchannels -@all +ping"
    echo "user rollcall on #$(digest redis-password) resetkeys ~rollcall:* resetchannels +@all -@admin -@dangerous"
    echo "user gcs on #$(digest gcs-password) resetkeys ~RAY* ~DUMMY resetchannels +@all -@admin -@dangerous +info"
} >redis-users.acl
echo "made; now: kubectl apply -k $(pwd)"
