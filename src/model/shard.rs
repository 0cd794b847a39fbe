//! The shard, and with it the stream, of a row's changes.

use xxhash_rust::xxh3::Xxh3;

/// Shard, from 1 to `shards`, of the row with this canonical key. All changes of a row go to one
/// stream, so that its newest change is the last one there. A different shard would do no harm,
/// because versions decide.
pub fn shard(table: &str, key: &[u8], shards: u32) -> u32 {
    if shards <= 1 {
        return 1;
    }
    let mut hash = Xxh3::new();
    hash.update(table.to_ascii_lowercase().as_bytes());
    hash.update(&[0]);
    hash.update(key);
    (hash.digest() % u64::from(shards)) as u32 + 1
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_shard_is_used_and_names_ignore_case() {
        let shards = |table| {
            (0..200u8)
                .map(|k| super::shard(table, &[k], 4))
                .collect::<Vec<_>>()
        };
        assert_eq!(shards("Books"), shards("books"));
        assert!((1..=4).all(|s| shards("Books").contains(&s)));
        assert_eq!(super::shard("Books", b"x", 1), 1);
    }
}
