//! Address of the S3 server: host, scheme, region.

use s3::Region;

use crate::address::url::Url;
use crate::config::snapshot::S3Store;

pub(super) struct Endpoint {
    pub(super) region: Region,
    /// The region to use when a bucket is created.
    pub(super) creation_region: Region,
    pub(super) address: String,
}

/// Parses the endpoint. A scheme in `endpoint` takes precedence over `use_ssl`.
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
    // For its first region, AWS refuses a request that names the region of a new bucket. The
    // library names it for any `Region` but `UsEast1`.
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

/// The region in `s3.eu-central-1.amazonaws.com` and in the host names of other providers that use
/// the same form.
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
