//! Where S3 is: host, scheme, region.

use s3::Region;

use crate::address::url::Url;
use crate::config::snapshot::S3Store;

pub(super) struct Endpoint {
    pub(super) region: Region,
    /// The same for making a bucket.
    pub(super) creation_region: Region,
    pub(super) address: String,
}

/// A scheme in `endpoint` goes before `use_ssl`.
pub(super) fn parse(settings: &S3Store) -> Result<Endpoint, String> {
    let scheme = if settings.use_ssl { "https" } else { "http" };
    let server = Url::parse(&settings.endpoint, scheme)?.server;
    if !matches!(server.scheme.as_str(), "http" | "https") {
        return Err(format!("endpoint {server}: not an http or https address"));
    }
    let address = server.to_string();
    let environment = std::env::var("AWS_REGION").ok().filter(|r| !r.is_empty());
    let region = settings
        .region
        .clone()
        .or_else(|| region_in(&server.host))
        .or(environment)
        .unwrap_or_else(|| "us-east-1".into());
    let custom = Region::Custom {
        region: region.clone(),
        endpoint: address.clone(),
    };
    // AWS refuses a bucket that is explicitly to be there, and the library says it for any other
    // kind of region.
    let in_first = region == "us-east-1" && server.host.ends_with(".amazonaws.com");
    Ok(Endpoint {
        creation_region: if in_first {
            Region::UsEast1
        } else {
            custom.clone()
        },
        region: custom,
        address,
    })
}

/// `s3.eu-central-1.amazonaws.com`, and others who name their hosts like that.
fn region_in(host: &str) -> Option<String> {
    let (label, rest) = host.strip_prefix("s3.")?.split_once('.')?;
    let region = label.contains('-') && label.contains(|c: char| c.is_ascii_digit());
    (region && rest.contains('.')).then(|| label.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_by_host() {
        let region = |host| region_in(host).unwrap_or_default();
        assert_eq!(region("s3.eu-central-1.amazonaws.com"), "eu-central-1");
        assert_eq!(region("s3.us-west-004.backblazeb2.com"), "us-west-004");
        for host in [
            "s3.amazonaws.com",
            "s3.nas.example.com",
            "127.0.0.1",
            "minio",
        ] {
            assert_eq!(region(host), "", "{host}");
        }
    }
}
