#!/usr/bin/env bash
# Rebuild medvol/reporting/assets/niivue.min.js and its licences from npm's exact versions.
# Needs node and npm; the committed files make it unnecessary for users and for CI.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
assets="$here/../../medvol/reporting/assets"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cp "$here"/*.js "$here/package.json" "$here/package-lock.json" "$scratch/"
cd "$scratch"
npm ci --no-audit --no-fund --ignore-scripts
node_modules/@esbuild/*/bin/esbuild entry.js --bundle --minify --charset=utf8 --format=iife \
    --global-name=niivue --target=es2022 --legal-comments=none \
    --alias:zarrita=./nozarr.js --outfile="$assets/niivue.min.js"
{
    cat "$here/LICENSE.niivue"
    for name in fflate gl-matrix nifti-reader-js array-equal @lukeed/uuid @ungap/structured-clone; do
        printf '\n\n== %s %s ==\n\n' "$name" "$(node -p "require('./node_modules/$name/package.json').version")"
        cat node_modules/"$name"/[Ll][Ii][Cc][Ee][Nn][Ss][Ee]*
    done
} > "$assets/niivue.LICENSE.txt"
