//! Gives the files that `dolmen-verify export` wrote for evidence about a host to the verifier of the crate
//! `az-cvm-vtpm`, unmodified: `dolmen-third-party FOLDER NONCE-IN-HEX`. Success means that it accepts them.

use std::path::Path;
use std::process::ExitCode;

use az_cvm_vtpm::vtpm::Quote;
use openssl::pkey::PKey;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match verify(&arguments) {
        Ok(()) => {
            println!("accepted");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("refused: {error}");
            ExitCode::FAILURE
        }
    }
}

fn verify(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [folder, nonce] = arguments else { return Err("usage: FOLDER NONCE".into()) };
    let read = |name: &str| std::fs::read(Path::new(folder).join(name));
    let values = read("values")?;
    let (values, rest) = values.as_chunks::<32>();
    if !rest.is_empty() {
        return Err("the values are no whole registers".into());
    }
    // The crate's own form of a quote, which it reads from a virtual machine's TPM otherwise.
    let quote: Quote = serde_json::from_value(serde_json::json!({
        "signature": read("quote.der")?,
        "message": read("quote.msg")?,
        "pcrs": values,
    }))?;
    let key = PKey::public_key_from_pem(&read("ak.pem")?)?;
    quote.verify(&key, &hex::decode(nonce)?)?;
    Ok(())
}
