//! Certificates for servers that speak TLS.

use std::path::Path;
use std::process::Command;

/// Makes a certificate authority, and certificates of it for `server` and `client`.
pub fn make(folder: &Path) {
    let openssl = |arguments: &str| {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output();
        let done = done.expect("openssl is needed (apt-get install openssl)");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for ca in ["ca", "other"] {
        openssl(&format!(
            "req -x509 {key} -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"
        ));
    }
    std::fs::write(folder.join("ext"), "subjectAltName=IP:127.0.0.1").unwrap();
    for name in ["server", "client"] {
        openssl(&format!(
            "req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        let ca = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext";
        openssl(&format!("x509 -req -in {name}.csr {ca} -out {name}.pem"));
    }
}
