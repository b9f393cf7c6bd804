//! How fast one connection moves bytes: `speed HOST PORT USER KEYFILE down|up MIB [STREAMS]`.
//!
//! `FILE` in the environment names a file there that is sent, a part by each stream, and nothing
//! else is done; else zeros are. The time includes the logins. For measuring by hand beside `ssh -c aes128-gcm@openssh.com HOST 'head -c …'`. It takes
//! whatever host key is shown, so it is a measuring tool and nothing else.

use std::time::Instant;

use bytes::Bytes;
use hvbak_ssh::{Connection, HostTrust, Identity, Target};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, user, key, way, mib, rest @ ..] = args.as_slice() else {
        return Err("usage: speed HOST PORT USER KEYFILE down|up MIB [STREAMS]".into());
    };
    let streams: u64 = rest.first().map_or(Ok(1), |n| n.parse())?;
    let each = (mib.parse::<u64>()? << 20) / streams.max(1);
    let mut target = Target::new(host, host, user);
    target.port = port.parse()?;
    target.trust = HostTrust::accept_new();
    target.identity = vec![Identity::key_file(key)];
    if let Ok(window) = std::env::var("WINDOW_MIB") {
        target.options.window = window.parse::<u32>()? << 20;
    }

    let file = std::env::var("FILE").ok();
    if file.is_none() {
        let start = Instant::now();
        let connection = Connection::connect(&target).await?;
        let connected = start.elapsed();
        connection.exec("true").await?;
        eprintln!("connect {connected:.1?}, first exec {:.1?}", start.elapsed() - connected);
        eprintln!("{:?}", connection.negotiated());
        connection.close().await;
    }

    let start = Instant::now();
    let mut tasks = Vec::new();
    for n in 0..streams {
        let target = target.clone();
        let up = way == "up";
        let command = match &file {
            None => format!("head -c {each} /dev/zero"),
            Some(file) => format!(
                "dd if={} bs=1M skip={} count={} status=none",
                hvbak_ssh::sh_quote(file),
                n * (each >> 20),
                each >> 20
            ),
        };
        tasks.push(tokio::spawn(async move {
            let connection = Connection::connect(&target).await?;
            if up {
                let (mut stdin, stdout, exit) = connection.spawn("cat >/dev/null").await?.split();
                drop(stdout);
                let block = Bytes::from(vec![0_u8; 1 << 20]);
                for _ in 0..each >> 20 {
                    stdin.write_all(block.clone()).await?;
                }
                stdin.finish().await?;
                exit.wait().await?;
            } else {
                let mut process = connection.spawn(&command).await?;
                let mut total = 0;
                while let Some(data) = process.stdout.recv().await? {
                    total += data.len() as u64;
                }
                assert_eq!(total, each);
            }
            Ok::<_, hvbak_ssh::Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = each * streams;
    println!(
        "{way} {streams} stream(s): {:.0} MB/s in {seconds:.2} s",
        bytes as f64 / 1e6 / seconds
    );
    Ok(())
}
