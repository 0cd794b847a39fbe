//! The public key of an SSH server, in the form of `host_key` and `known_hosts`.

use crate::model::base64;

/// The kind and the key of `[host] ssh-ed25519 AAAA… [comment]`; None for any other text.
pub(crate) fn pinned(line: &str) -> Option<(String, Vec<u8>)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let place = words.iter().position(|word| word.starts_with("AAAA"))?;
    let kind = words.get(place.checked_sub(1)?)?;
    Some((kind.to_string(), base64::decode(words[place])?))
}

#[cfg(test)]
mod tests {
    use super::pinned;

    #[test]
    fn a_pin_with_and_without_what_surrounds_it() {
        let key = "AAAAC3NzaC1lZDI1NTE5AAAAIJ";
        for line in [
            format!("ssh-ed25519 {key}"),
            format!("[h]:22 ssh-ed25519 {key} me@home"),
        ] {
            let (kind, bytes) = pinned(&line).unwrap();
            assert_eq!(kind, "ssh-ed25519");
            assert!(bytes.starts_with(b"\0\0\0\x0bssh-ed25519"));
        }
        for bad in ["", key, "ssh-ed25519", "ssh-ed25519 AAAA$"] {
            assert!(pinned(bad).is_none(), "{bad}");
        }
    }
}
