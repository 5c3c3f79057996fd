//! HTTP over TLS: by a library, and to servers only for whom the given certificates vouch.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::answer::Reply;
use crate::args::Arguments;
use crate::failure::Failure;
use crate::request::{Method, Request, Server};

/// Longest wait for a connection, and for all of one request.
const CONNECT: Duration = Duration::from_secs(20);
const REQUEST: Duration = Duration::from_secs(120);
/// Longest answer that is read.
const MOST: u64 = 1 << 20;
/// Longest pause that a server can ask for.
const LONGEST_PAUSE: u64 = 86_400;

/// A way to the servers.
pub(crate) trait Web {
    /// Sends a request and waits for the answer.
    fn ask(&mut self, request: &Request) -> Result<Reply, Failure>;
    /// Waits for so many seconds.
    fn pause(&mut self, seconds: u64);
}

/// The servers, by HTTP over TLS.
#[derive(Debug)]
pub(crate) struct Https {
    agent: Agent,
    registrar: String,
    verifier: String,
}

impl Https {
    /// The servers that the user named.
    pub(crate) fn new(arguments: &Arguments) -> Result<Self, Failure> {
        let roots = RootCerts::Specific(Arc::new(certificates(&arguments.ca)?));
        let config = Agent::config_builder()
            .https_only(true)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(REQUEST))
            .user_agent(concat!("dolmen-keylime/", env!("CARGO_PKG_VERSION")))
            .build();
        let (registrar, verifier) = (arguments.registrar.clone(), arguments.verifier.clone());
        Ok(Self { agent: config.into(), registrar, verifier })
    }

    fn server(&self, server: Server) -> &str {
        match server {
            Server::Registrar => &self.registrar,
            Server::Verifier => &self.verifier,
        }
    }
}

impl Web for Https {
    fn ask(&mut self, request: &Request) -> Result<Reply, Failure> {
        let address = format!("{}{}", self.server(request.server), request.path);
        let mut sending = match request.method {
            Method::Post => self.agent.post(&address),
            Method::Put => self.agent.put(&address),
            Method::Patch => self.agent.patch(&address),
        }
        .header("Content-Type", request.media_type())
        .header("Accept", request.media_type());
        if let Some(token) = &request.token {
            sending = sending.header("Authorization", format!("Bearer {}", token.as_str()));
        }
        let failed = |error: ureq::Error| trouble(self.server(request.server), &error);
        let mut response = sending.send(request.body.to_string()).map_err(failed)?;
        let retry_after = retry_after(response.headers());
        let status = response.status().as_u16();
        let body = body(&mut response).map_err(failed)?;
        Ok(Reply { status, retry_after, body })
    }

    fn pause(&mut self, seconds: u64) {
        std::thread::sleep(Duration::from_secs(seconds.min(LONGEST_PAUSE)));
    }
}

fn body(response: &mut Response<Body>) -> Result<Vec<u8>, ureq::Error> {
    response.body_mut().with_config().limit(MOST).read_to_vec()
}

/// Seconds, where a server says when to come again.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let seconds: u64 = headers.get("Retry-After")?.to_str().ok()?.trim().parse().ok()?;
    Some(seconds.min(LONGEST_PAUSE))
}

/// The certificates in a file of PEM: at least one.
fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, Failure> {
    let fatal =
        |why: &str| Failure::Fatal(format!("cannot take certificates from {}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| fatal(&error.to_string()))?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        match item.map_err(|error| fatal(&error.to_string()))? {
            PemItem::Certificate(certificate) => found.push(certificate.to_owned()),
            PemItem::PrivateKey(_) | _ => {
                return Err(fatal("it holds something else; never give a private key to a client"));
            }
        }
    }
    if found.is_empty() {
        return Err(fatal("it holds none. Hint: give `cacert.crt` of the verifier (its folder `cv_ca`)"));
    }
    Ok(found)
}

/// What kept a request from its answer. Whom nobody vouches for today is not vouched for in a minute either.
fn trouble(server: &str, error: &ureq::Error) -> Failure {
    let text = format!("cannot talk to {server}: {error}");
    let is_about_trust = matches!(error, ureq::Error::Tls(_) | ureq::Error::Rustls(_))
        || matches!(error, ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData);
    if is_about_trust {
        Failure::Fatal(format!(
            "{text}. Hint: `--ca` must hold the certificate that vouches for this server, and the server's own must name \
             the host of the address (Keylime: `cert_subject_alternative_names`); and this guest's clock must be right"
        ))
    } else {
        Failure::Later(text, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn from(text: &str) -> Result<Vec<Certificate<'static>>, Failure> {
        let path = std::env::temp_dir().join(format!("dolmen-keylime-{}-{}", std::process::id(), text.len()));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        let found = certificates(&path);
        std::fs::remove_file(&path).unwrap();
        found
    }

    #[test]
    fn a_file_must_hold_certificates_and_nothing_else() {
        let certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let key = "-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(from(&certificate.repeat(2)).unwrap().len(), 2);
        for bad in ["", "no PEM", key, &format!("{certificate}{key}")] {
            assert!(matches!(from(bad), Err(Failure::Fatal(_))), "{bad}");
        }
        assert!(certificates(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn a_server_cannot_ask_for_more_than_a_day() {
        let headers = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("Retry-After", value.parse().unwrap());
            headers
        };
        assert_eq!(retry_after(&headers("5")), Some(5));
        assert_eq!(retry_after(&headers("99999999999")), Some(LONGEST_PAUSE));
        for none in ["-1", "soon", "99999999999999999999999"] {
            assert_eq!(retry_after(&headers(none)), None, "{none}");
        }
    }

    #[test]
    fn who_is_not_vouched_for_is_not_asked_again() {
        let io = |kind: std::io::ErrorKind| ureq::Error::Io(kind.into());
        assert!(
            matches!(trouble("s", &io(std::io::ErrorKind::InvalidData)), Failure::Fatal(text) if text.contains("--ca"))
        );
        assert!(matches!(trouble("s", &io(std::io::ErrorKind::ConnectionRefused)), Failure::Later(..)));
        assert!(matches!(trouble("s", &ureq::Error::HostNotFound), Failure::Later(..)));
    }
}
