#!/usr/bin/env bash
# Makes packages of the binaries that scripts/build-static.sh built, into target/packages.
#   scripts/package.sh [TARGET...]            without targets: of all that are built
#   scripts/package.sh --verify [TARGET...]   also makes them a second time, and looks into each
# For each target: a .tar.gz with everything; a .deb for armhf (ARMv6 binary), arm64 and amd64; .ipk
# for OpenWrt with opkg (up to 24.10) and .apk for OpenWrt with apk (from 25.12) of each
# architecture that the binary runs on. SHA256SUMS covers all. The same sources give the same bytes:
# times are SOURCE_DATE_EPOCH, by default that of the last commit.
# A .deb needs dpkg-deb. An .apk needs apk of apk-tools 3 (APK names another program); without one
# it is left out, with a word.
# An OpenWrt package holds the minimal binary where that is built.
# --verify: the second time gives the same bytes; lintian finds no error in a .deb; each package
# holds the binary, and every file is root's. opkg (OPKG names another program) and apk install
# theirs into an empty folder, where they are at hand.
# HARMONYLITE_MAINTAINER, "NAME <ADDRESS>", is who answers for them: the last commit's author.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "package: $*" >&2; }
fail() { say "$*" && exit 1; }

static=$PWD/target/static out=${HARMONYLITE_PACKAGES:-$PWD/target/packages}
verify=
if [[ ${1:-} == --verify ]]; then
    verify=1
    shift
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

targets=("$@")
if [[ $# == 0 ]]; then
    for folder in "$static"/*-linux-musl*/; do
        [[ -d $folder ]] && targets+=("$(basename "$folder")")
    done
fi
[[ ${#targets[@]} -gt 0 ]] || fail "nothing is built; run scripts/build-static.sh TARGET first"
mkdir -p "$out"

# put MODE SOURCE DESTINATION: a file in the tree that is packed.
put() { install -D -m "$1" "$2" "$3"; }

# The reference of keys is the configuration as it is installed, with a database that is no example.
installed_config() {
    sed 's|^db_path = .*|db_path = "/var/lib/harmonylite/data.db"|' config.toml >"$work/config.toml"
    echo "$work/config.toml"
}

# packed FOLDER: the folder as a tar file on standard output, the same on every machine.
packed() {
    tar --create --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 \
        --numeric-owner --directory "$1" "${@:2}"
}

# documents FOLDER: the README, and the chapters where its links look for them.
documents() {
    local chapter
    put 644 README.md "$1/README.md"
    for chapter in src/guide/*.md; do put 644 "$chapter" "$1/$chapter"; done
}

all_in_one() {
    local target=$1 name=harmonylite-$version-$1 tree=$work/tar
    rm -rf "$tree"
    put 755 "$static/$target/harmonylite" "$tree/$name/harmonylite"
    put 644 LICENSE "$tree/$name/LICENSE"
    documents "$tree/$name"
    put 644 "$(installed_config)" "$tree/$name/config.toml"
    mkdir -p "$tree/$name/examples"
    cp -r examples/service "$tree/$name/examples/"
    chmod -R u=rwX,go=rX "$tree/$name/examples"
    packed "$tree" "$name" | gzip -9n >"$out/$name.tar.gz"
}

description="Keeps SQLite databases on many machines the same
 HarmonyLite runs beside an application and sends what it writes to its SQLite
 database to other machines over NATS JetStream. Every node reads and writes
 its own file, also offline; the last writer of a row wins everywhere."

debian_scripts() {
    local into=$1
    cat >"$into/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    adduser --system --group --quiet --no-create-home --home /var/lib/harmonylite harmonylite
    # It may hold passwords.
    chgrp harmonylite /etc/harmonylite/config.toml
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        if [ -n "$2" ]; then
            deb-systemd-invoke try-restart harmonylite.service >/dev/null || true
        fi
    fi
fi
SCRIPT
    cat >"$into/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop harmonylite.service >/dev/null || true
fi
SCRIPT
    cat >"$into/postrm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = purge ] && command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper purge harmonylite.service >/dev/null || true
fi
SCRIPT
    chmod 755 "$into"/{postinst,prerm,postrm}
}

debian() {
    local target=$1 arch=$2 tree=$work/deb doc
    doc=$tree/usr/share/doc/harmonylite
    rm -rf "$tree"
    put 755 "$static/$target/harmonylite" "$tree/usr/bin/harmonylite"
    put 640 "$(installed_config)" "$tree/etc/harmonylite/config.toml"
    put 644 examples/service/harmonylite.service "$tree/lib/systemd/system/harmonylite.service"
    documents "$doc"
    put 644 LICENSE "$doc/copyright"
    local date
    date=$(date --utc --date="@$SOURCE_DATE_EPOCH" --rfc-email)
    printf 'harmonylite (%s) unstable; urgency=medium\n\n  * Release %s.\n\n -- %s  %s\n' \
        "$version" "$version" "$maintainer" "$date" | gzip -9n >"$doc/changelog.gz"
    chmod 644 "$doc/changelog.gz"
    mkdir -p "$tree/usr/share/lintian/overrides" "$tree/DEBIAN"
    # It is meant to need no library of the box, old ones included.
    printf 'harmonylite: %s\n' 'statically-linked-binary [usr/bin/harmonylite]' \
        'embedded-library *' 'non-standard-file-perm 0640 != 0644 [etc/harmonylite/config.toml]' \
        >"$tree/usr/share/lintian/overrides/harmonylite"
    echo /etc/harmonylite/config.toml >"$tree/DEBIAN/conffiles"
    debian_scripts "$tree/DEBIAN"
    cat >"$tree/DEBIAN/control" <<CONTROL
Package: harmonylite
Version: $version
Architecture: $arch
Maintainer: $maintainer
Section: database
Priority: optional
Installed-Size: $(du -sk --apparent-size "$tree" | cut -f1)
Pre-Depends: init-system-helpers (>= 1.54~)
Depends: adduser
Recommends: ca-certificates
Suggests: nats-server, sqlite3
Description: $description
CONTROL
    find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --build --root-owner-group -Zxz "$tree" \
        "$out/harmonylite_${version}_$arch.deb" >/dev/null
}

openwrt_tree() {
    local target=$1 tree=$2 binary=$static/$1/harmonylite-minimal
    [[ -x $binary ]] || binary=$static/$target/harmonylite
    rm -rf "$tree"
    put 755 "$binary" "$tree/usr/bin/harmonylite"
    put 755 examples/service/openwrt.init "$tree/etc/init.d/harmonylite"
    put 644 examples/service/openwrt.config "$tree/etc/config/harmonylite"
    mkdir -p "$tree/etc/harmonylite"
    # Kept when the firmware is updated.
    mkdir -p "$tree/lib/upgrade/keep.d"
    printf '/etc/harmonylite/\n' >"$tree/lib/upgrade/keep.d/harmonylite"
}

# The layout is opkg's: https://openwrt.org/docs/guide-developer/packages, a gzipped tar of a
# version file and two gzipped tars.
ipk() {
    local target=$1 arch=$2 tree=$work/ipk control=$work/control parts=$work/parts
    openwrt_tree "$target" "$tree"
    rm -rf "$control" "$parts"
    mkdir -p "$control" "$parts"
    echo /etc/config/harmonylite >"$control/conffiles"
    cat >"$control/control" <<CONTROL
Package: harmonylite
Version: $version
Architecture: $arch
Maintainer: $maintainer
License: MIT
Section: utils
Installed-Size: $(du -sb "$tree" | cut -f1)
Description: $description
CONTROL
    cat >"$control/prerm" <<'SCRIPT'
#!/bin/sh
[ -n "$IPKG_INSTROOT" ] || { /etc/init.d/harmonylite disable; /etc/init.d/harmonylite stop; }
exit 0
SCRIPT
    chmod 755 "$control/prerm"
    echo 2.0 >"$parts/debian-binary"
    packed "$control" . | gzip -9n >"$parts/control.tar.gz"
    packed "$tree" . | gzip -9n >"$parts/data.tar.gz"
    packed "$parts" ./debian-binary ./control.tar.gz ./data.tar.gz | gzip -9n \
        >"$out/harmonylite_${version}_$arch.ipk"
}

apk_program() {
    local program
    program=$(command -v "${APK:-apk}") || return
    "$program" --version 2>/dev/null | grep -q '^apk-tools 3' && echo "$program"
}

apk() {
    local target=$1 arch=$2 tree=$work/apk scripts=$work/apk-scripts
    openwrt_tree "$target" "$tree"
    # apk in OpenWrt reads these of a package: its conffiles, and the list of its files.
    mkdir -p "$tree/lib/apk/packages" "$scripts"
    echo /etc/config/harmonylite >"$tree/lib/apk/packages/harmonylite.conffiles"
    (cd "$tree" && find . -type f | sed 's/^\.//' | sort) >"$work/list"
    put 644 "$work/list" "$tree/lib/apk/packages/harmonylite.list"
    printf '#!/bin/sh\n/etc/init.d/harmonylite disable\n/etc/init.d/harmonylite stop\nexit 0\n' \
        >"$scripts/pre-deinstall"
    find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    "$apk_tool" mkpkg --files "$tree" --output "$out/harmonylite-$version-$arch.apk" \
        --script "pre-deinstall:$scripts/pre-deinstall" \
        --info name:harmonylite --info "version:$version-r0" --info "arch:$arch" \
        --info license:MIT --info origin:harmonylite --info "maintainer:$maintainer" \
        --info "description:$(head -n 1 <<<"$description")"
}

# The architectures of OpenWrt that run the binary of a target.
openwrt_architectures() {
    case $1 in
    arm-*) echo arm_arm1176jzf-s_vfp ;;
    armv7-*) echo arm_cortex-a7_neon-vfpv4 arm_cortex-a9_vfpv3-d16 arm_cortex-a15_neon-vfpv4 ;;
    aarch64-*) echo aarch64_generic aarch64_cortex-a53 aarch64_cortex-a72 ;;
    x86_64-*) echo x86_64 ;;
    mipsel-*) echo mipsel_24kc ;;
    esac
}

# ARMv6 runs on every Raspberry Pi; Debian's own armhf would be ARMv7.
debian_architecture() {
    case $1 in
    arm-*) echo armhf ;;
    aarch64-*) echo arm64 ;;
    x86_64-*) echo amd64 ;;
    esac
}

maintainer=${HARMONYLITE_MAINTAINER:-$(git log -1 --format='%an <%ae>')}
opkg_tool=$(command -v "${OPKG:-opkg}") || true
apk_tool=$(apk_program) || say "no apk of apk-tools 3 here: no .apk is made"
command -v dpkg-deb >/dev/null || say "no dpkg-deb here: no .deb is made"
for target in "${targets[@]}"; do
    binary=$static/$target/harmonylite
    minimal=$static/$target/harmonylite-minimal
    [[ -x $binary || -x $minimal ]] || fail "$target is not built: scripts/build-static.sh $target"
    arch=$(debian_architecture "$target")
    if [[ -x $binary ]]; then
        all_in_one "$target"
        if [[ -n $arch ]] && command -v dpkg-deb >/dev/null; then debian "$target" "$arch"; fi
    fi
    for arch in $(openwrt_architectures "$target"); do
        ipk "$target" "$arch"
        if [[ -n $apk_tool ]]; then apk "$target" "$arch"; fi
    done
done
cd "$out"
rm -f SHA256SUMS
sums=$(sha256sum -- *)
tee SHA256SUMS <<<"$sums"

# same_bytes TARGET...: made once more elsewhere, by a user with other habits.
same_bytes() {
    local again=$work/again
    (umask 077 && TZ=Asia/Tokyo HARMONYLITE_PACKAGES=$again scripts/package.sh "$@" >/dev/null 2>&1)
    cmp "$out/SHA256SUMS" "$again/SHA256SUMS" || fail "a second time gives other bytes"
}

# is_in_archive FILE COMMAND...: the command unpacks an archive into the folder `x`, which then
# holds usr/bin/harmonylite.
is_in_archive() {
    local archive=$1
    rm -rf "$work/x" && mkdir "$work/x"
    (cd "$work/x" && "${@:2}") || fail "$archive: cannot be unpacked"
    local packed
    packed=$(find "$work/x" -name harmonylite -type f -size +100k)
    [[ -x $packed ]] || fail "$archive: there is no binary in it"
    local built
    for built in "$static"/*/harmonylite "$static"/*/harmonylite-minimal; do
        cmp -s "$packed" "$built" && return
    done
    fail "$archive: its binary is none of target/static"
}

unpack_ipk() {
    tar -xzf "$1" ./debian-binary ./control.tar.gz ./data.tar.gz
    [[ $(cat debian-binary) == 2.0 ]]
    tar -xzf control.tar.gz ./control ./conffiles ./prerm
    grep -q '^Architecture: ' control
    tar -xzf data.tar.gz
}

install_ipk() {
    mkdir -p etc tmp var/lock
    printf 'dest root /\narch %s 1\nlists_dir ext /var/lists\n' "$2" >etc/opkg.conf
    "$opkg_tool" --offline-root "$PWD" --conf "$PWD/etc/opkg.conf" install "$1" >/dev/null
}

install_apk() {
    "$apk_tool" --root "$PWD" --initdb --allow-untrusted --no-network --arch "$2" --quiet add "$1"
}

verify_all() {
    local package strangers arch
    for package in "$out"/*.tar.gz; do
        is_in_archive "$package" tar -xzf "$package"
        strangers=$(tar -tvzf "$package" | grep -v ' 0/0 ' || true)
        [[ -z $strangers ]] || fail "$package: not root's: $strangers"
    done
    for package in "$out"/*.deb; do
        [[ -e $package ]] || continue
        is_in_archive "$package" dpkg-deb -x "$package" .
        if ! command -v lintian >/dev/null; then
            say "no lintian here: $package is not checked by it"
        else
            lintian --allow-root --fail-on error --suppress-tags no-manual-page "$package" ||
                fail "lintian finds errors"
        fi
    done
    for package in "$out"/*.ipk; do
        is_in_archive "$package" unpack_ipk "$package"
        arch=${package##*"_${version}_"}
        [[ -z $opkg_tool ]] || is_in_archive "$package" install_ipk "$package" "${arch%.ipk}"
    done
    for package in "$out"/*.apk; do
        [[ -n $apk_tool ]] || continue
        arch=${package##*"-$version-"}
        is_in_archive "$package" install_apk "$package" "${arch%.apk}"
    done
}

if [[ -n $verify ]]; then
    cd "$(dirname "$static")/.."
    same_bytes "${targets[@]}"
    verify_all
    say "all packages hold what was built, and are the same a second time"
fi
