#!/usr/bin/env bash
# Build the site of main and of each tag that has one, each into a folder of build/published, with
# the list from which the pages offer the versions. SITE_URL is where they will be.
set -euo pipefail
cd "$(dirname "$0")/../.."
address=${SITE_URL%/}
out=$PWD/build/published
rm -rf "$out"
mkdir -p "$out"
list=()
for ref in origin/main $(git tag --list 'v*' --sort=-version:refname); do
  git cat-file -e "$ref:tools/site/conf.py" 2>/dev/null || continue
  name=${ref#origin/}
  git worktree add --detach "build/tree" "$ref"
  SITE_VERSION=$name make -C build/tree docs
  mv build/tree/build/docs/html "$out/$name"
  git worktree remove --force build/tree
  list+=("{\"version\": \"$name\", \"url\": \"$address/$name/\"}")
done
(IFS=,; echo "[${list[*]}]") > "$out/versions.json"
echo '<meta http-equiv="refresh" content="0; url=main/">' > "$out/index.html"
