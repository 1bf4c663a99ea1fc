#!/bin/sh
# What a program for a target is made of (SBOM), in the form of CycloneDX:
#
#   packaging/image/parts.sh tidegate x86_64-unknown-linux-musl parts.cdx.json
#
# From what Cargo builds: a scan would find nothing in a static program, and the tests' parts in the checkout.
# Needs cargo-cyclonedx and jq.
set -eu
program=$1
target=$2
out=$3
work=$(mktemp -d)
trap 'rm -rf "$work" ./*.cdx.json crates/*/*.cdx.json xtask/*.cdx.json' EXIT
cargo cyclonedx --format json --spec-version 1.5 --target "$target"
listed=$program.cdx.json
[ -e "$listed" ] || listed=crates/$program/$program.cdx.json
# It lists features of parts that nothing turns on too, such as another provider of cryptography.
cargo tree --locked --package "$program" --edges normal,build --target "$target" --prefix none --format '{p}' |
  awk '{print $1 "@" substr($2, 2)}' | sort -u | jq --raw-input . | jq --slurp . > "$work/built.json"
jq --slurpfile built "$work/built.json" '
  (.components |= map(select("\(.name)@\(.version)" as $it | $built[0] | index($it))))
  | ([.metadata.component["bom-ref"], .components[]["bom-ref"]]) as $known
  | .dependencies |= (map(select(.ref as $it | $known | index($it)))
      | map(if .dependsOn then .dependsOn |= map(select(. as $it | $known | index($it))) else . end))
' "$listed" > "$work/out.json"
# A list of nothing would be signed as well.
jq --exit-status '.components | length > 100' "$work/out.json" > /dev/null
mv "$work/out.json" "$out"
