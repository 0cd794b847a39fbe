#!/usr/bin/env bash
# Builds static musl binaries for boxes: no library of the box is needed.
#   scripts/build-static.sh [--minimal] [--build-std] TARGET...
#     arm-unknown-linux-musleabihf      Raspberry Pi 1 and Zero (ARMv6)
#     armv7-unknown-linux-musleabihf    32-bit Raspberry Pi OS on a Pi 2 and newer, most ARM routers
#     aarch64-unknown-linux-musl        64-bit ARM
#     x86_64-unknown-linux-musl         PCs and servers
#     mipsel-unknown-linux-musl         older routers (MediaTek MT76xx), soft float
#   --minimal     without the stores s3, sftp, webdav and file (snapshots go to NATS), heartbeat,
#                 and SQLite's FTS and R-Tree, which only triggers in `apply_triggers` need
#   --build-std   builds Rust's standard library even where one is installed: smaller
# The binaries are target/static/TARGET/harmonylite, or harmonylite-minimal.
#
# Zig compiles the C parts and links; it comes from PyPI unless it is installed, with
# cargo-zigbuild. Rust's standard library is the toolchain's where `rustup target add TARGET` put
# it; else it is built from source: RUST_SRC (a folder that holds library/), the toolchain's
# component rust-src, or Debian's package rust-src of the very version of rustc. The toolchain
# itself is never changed. Building it takes RUSTC_BOOTSTRAP=1: cargo's build-std is not stable,
# the compiler is the same. The same flag allows to leave out the places of panics; the panic's own
# words stay.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

into=$PWD/target/static
tools=$into/tools
# The malloc of zig 0.17 gives no small piece back to the system, and takes the
# next power of two for each.
zig_version=0.15.2 zigbuild_version=0.24.0

say() { echo "build-static: $*" >&2; }
fail() { say "$*" && exit 1; }

features=() name=harmonylite builds_std=
while [[ ${1:-} == --* ]]; do
    case $1 in
    --minimal) features=(--no-default-features --features store-nats) name=harmonylite-minimal ;;
    --build-std) builds_std=1 ;;
    *) break ;;
    esac
    shift
done
[[ $# -gt 0 && $1 != -* ]] || { sed -n 2,13p "$0" >&2 && exit 2; }

command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
command -v cargo >/dev/null || fail "there is no cargo; see https://www.rust-lang.org/tools/install"

get_zig() {
    if command -v cargo-zigbuild >/dev/null && command -v zig >/dev/null; then return; fi
    if [[ ! -x $tools/venv/bin/cargo-zigbuild ]]; then
        say "getting zig $zig_version and cargo-zigbuild $zigbuild_version from PyPI"
        python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
        python3 -m venv "$tools/venv"
        "$tools/venv/bin/pip" --quiet --disable-pip-version-check install \
            "ziglang==$zig_version" "cargo-zigbuild==$zigbuild_version"
    fi
    PATH=$tools/venv/bin:$PATH
}

sysroot=$(rustc --print sysroot)
version=$(rustc --version | cut -d' ' -f2)

has_std() {
    compgen -G "$sysroot/lib/rustlib/$1/lib/libstd-*.rlib" >/dev/null
}

# Prints the folder that holds library/, of the very version of rustc.
std_source() {
    local own=$sysroot/lib/rustlib/src/rust debian=$tools/rust-src-$version
    if [[ -n ${RUST_SRC:-} ]]; then
        [[ -e $RUST_SRC/library/Cargo.lock ]] || fail "RUST_SRC: there is no library/ in $RUST_SRC"
        echo "$RUST_SRC"
    elif [[ -e $own/library/Cargo.lock ]]; then
        echo "$own"
    else
        [[ -e $debian/library/Cargo.lock ]] || std_source_of_debian "$debian"
        echo "$debian"
    fi
}

# With lists and packages of its own, so that the system's stay as they are.
std_source_of_debian() {
    local at=$tools/debian apt found advice
    advice="run \`rustup target add $target\` or \`rustup component add rust-src\`, or set RUST_SRC"
    command -v apt-get >/dev/null || fail "there is no standard library for $target; $advice"
    say "getting the source of the standard library, Debian's package rust-src $version"
    rm -rf "$at" && mkdir -p "$at/lists/partial" "$at/cache/archives/partial"
    local site
    # shellcheck disable=SC2016 # apt-get reads $(SITE)
    site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' |
        grep '/debian$' | head -n 1)
    printf "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site %s main\n" \
        trixie trixie-backports sid >"$at/sources.list"
    apt=(-o "Dir::State::Lists=$at/lists" -o "Dir::Etc::SourceList=$at/sources.list"
        -o Dir::Etc::SourceParts=/dev/null -o "Dir::Cache=$at/cache"
        -o "APT::Sandbox::User=$(id -un)")
    apt-get "${apt[@]}" -qq update >&2
    found=$(apt-cache "${apt[@]}" madison rust-src |
        awk -F'|' -v v="$version" '{ gsub(/ /, "", $2) }
            index($2, v "+") == 1 || index($2, v "-") == 1 { print $2; exit }')
    [[ -n $found ]] || fail "Debian has no rust-src $version; $advice"
    (cd "$at" && apt-get "${apt[@]}" -qq download "rust-src=$found" >&2 && dpkg -x rust-src_*.deb x)
    ln -sfn "$at/x/usr/src/rustc-$version" "$1"
}

# A copy of the toolchain that knows the source: cargo looks for it inside of the sysroot alone.
# No hard links, because rustup writes to files in place.
toolchain_with_source() {
    local source copy=$tools/sysroot-$version
    source=$(std_source)
    if [[ ! -x $copy/bin/rustc ]]; then
        rm -rf "$copy.new" && mkdir -p "$copy.new"
        cp -a "$sysroot/bin" "$sysroot/lib" "$copy.new/"
        mv "$copy.new" "$copy"
    fi
    mkdir -p "$copy/lib/rustlib/src"
    ln -sfn "$(cd "$source" && pwd -P)" "$copy/lib/rustlib/src/rust"
    say "the standard library for $target is built from $source"
    echo "$copy/bin"
}

# Where the binary says where it was built, it says the same on all machines.
remapped() {
    local cargo_home=${CARGO_HOME:-$HOME/.cargo}
    echo "--remap-path-prefix=$PWD=/harmonylite --remap-path-prefix=$cargo_home=/cargo" \
        "--remap-path-prefix=$tools=/tools --remap-path-prefix=$sysroot=/rust"
}

# Flags that leave parts of the C libraries out. zstd: compressors slower than level 3, the slowest
# in use. SQLite: parts for ANALYZE's samples and tools, and full-text search and R-Trees in the
# minimal binary.
lean_c() {
    export CFLAGS="-Oz -ffunction-sections -fdata-sections -fno-unwind-tables"
    CFLAGS+=" -fno-asynchronous-unwind-tables -DHUF_FORCE_DECOMPRESS_X1=1"
    CFLAGS+=" -DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT=1"
    local slow
    for slow in GREEDY LAZY LAZY2 BTLAZY2 BTOPT BTULTRA; do
        CFLAGS+=" -DZSTD_EXCLUDE_${slow}_BLOCK_COMPRESSOR=1"
    done
    local sqlite="-USQLITE_ENABLE_STAT4 -USQLITE_ENABLE_DBSTAT_VTAB -USQLITE_SOUNDEX"
    sqlite+=" -USQLITE_ENABLE_API_ARMOR -USQLITE_ENABLE_COLUMN_METADATA"
    sqlite+=" -USQLITE_ENABLE_LOAD_EXTENSION -DSQLITE_OMIT_LOAD_EXTENSION"
    if [[ $name == harmonylite-minimal ]]; then
        CFLAGS+=" -DZSTD_NO_INLINE=1"
        sqlite+=" -USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5"
        sqlite+=" -USQLITE_ENABLE_RTREE"
    fi
    export LIBSQLITE3_FLAGS=$sqlite
}

build() (
    target=$1
    flags=$(remapped) words=()
    if [[ -n $builds_std ]] || ! has_std "$target"; then
        bin=$(toolchain_with_source)
        PATH=$bin:$PATH
        export RUSTC_BOOTSTRAP=1
        words=(-Z "build-std=std,panic_abort" -Z build-std-features=optimize_for_size)
        # A standard library built here has no start-up objects of its own: zig brings them.
        flags+=" -C link-self-contained=no"
        flags+=" -Z location-detail=none -Z fmt-debug=shallow -C force-unwind-tables=no"
    fi
    lean_c
    export RUSTFLAGS="$flags" CARGO_TARGET_DIR=$into/build
    # With link-time optimisation this makes all of the code: what repeats becomes a function.
    cargo-zigbuild rustc --quiet --locked --profile small --target "$target" --bin harmonylite \
        "${features[@]}" "${words[@]}" -- -C llvm-args=--enable-machine-outliner=always
    install -D "$into/build/$target/small/harmonylite" "$into/$target/$name"
    printf '%s\t%s bytes\n' "$into/$target/$name" "$(stat -c %s "$into/$target/$name")"
)

get_zig
if [[ ${#features[@]} == 0 ]]; then
    need make make # OpenSSL, which SFTP needs, is built from source
    perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || install_packages perl
fi
for target in "$@"; do
    case $target in
    *-linux-musl*) build "$target" ;;
    *) fail "$target: only targets of Linux with musl make a static binary" ;;
    esac
done
