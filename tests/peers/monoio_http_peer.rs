//! monoio-http as a client and as a backend, on monoio's sockets over epoll: what is tested is its
//! HTTP, and epoll is there wherever the tests run.

use std::{cell::Cell, future::Future, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use hyper::{Request, Response, header::HOST};
use monoio::{
    LegacyDriver, RuntimeBuilder,
    io::{
        sink::{Sink, SinkExt},
        stream::Stream,
    },
    net::{TcpListener, TcpStream},
};
use monoio_http::{
    common::{body::BodyExt, error::HttpError},
    h1::{
        codec::{ClientCodec, ServerCodec, decoder::FillPayload},
        payload::{FixedPayload, Payload, stream_payload_pair},
    },
};

use crate::{
    echo::{CONNECTION, Echo, Exchange, FRAMING, METHOD, Sent, TARGET, framing_of},
    support::PATIENCE,
};

fn run<F: Future>(future: F) -> F::Output {
    let mut runtime =
        RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("descriptors are left");
    runtime.block_on(future)
}

fn payload(body: &Sent) -> Payload {
    match body {
        Sent::Nothing => Payload::None,
        Sent::WithLength(content) => Payload::Fixed(FixedPayload::new(content.clone().into())),
        Sent::InChunks(chunks) => {
            let (payload, mut sender) = stream_payload_pair::<Bytes, HttpError>();
            for chunk in chunks {
                sender.feed_data(Some(chunk.clone().into()));
            }
            sender.feed_data(None);
            Payload::Stream(payload)
        }
    }
}

fn request(exchange: &Exchange) -> Request<Payload> {
    let request = Request::builder().method(exchange.method).uri(exchange.target);
    request.header(HOST, "test").body(payload(&exchange.body)).expect("a request")
}

/// Asks one thing after the other on one connection.
pub(crate) fn ask(address: SocketAddr, exchanges: &[Exchange]) -> Vec<Echo> {
    run(within_patience(async {
        let mut codec = connect(address).await;
        let mut echoes = Vec::new();
        for exchange in exchanges {
            codec.send_and_flush(request(exchange)).await.expect("the balancer takes it");
            echoes.push(answer(&mut codec).await);
        }
        echoes
    }))
}

/// Asks everything on one connection before it reads the first answer.
pub(crate) fn ask_pipelined(address: SocketAddr, exchanges: &[Exchange]) -> Vec<Echo> {
    run(within_patience(async {
        let mut codec = connect(address).await;
        for exchange in exchanges {
            codec.send(request(exchange)).await.expect("the balancer takes it");
        }
        Sink::<Request<Payload>>::flush(&mut codec).await.expect("the balancer takes it");
        let mut echoes = Vec::new();
        for _ in exchanges {
            echoes.push(answer(&mut codec).await);
        }
        echoes
    }))
}

async fn within_patience<F: Future>(future: F) -> F::Output {
    monoio::time::timeout(PATIENCE, future).await.expect("it ends in time")
}

async fn connect(address: SocketAddr) -> ClientCodec<TcpStream> {
    ClientCodec::new(TcpStream::connect_addr(address).await.expect("the balancer accepts"))
}

async fn answer(codec: &mut ClientCodec<TcpStream>) -> Echo {
    let response = codec.next().await.expect("an answer").expect("one that it understands");
    let (parts, body) = response.into_parts();
    let body = body.with_io(codec).bytes().await.expect("a whole body");
    Echo::new(parts.status.as_u16(), parts.headers, body.to_vec())
}

/// Echoes every request.
pub(crate) fn serve_echo(listener: std::net::TcpListener) {
    run(async {
        let listener = TcpListener::from_std(listener).expect("a listener");
        let connections = Rc::new(Cell::new(0));
        while let Ok((stream, _)) = listener.accept().await {
            let connections = Rc::clone(&connections);
            monoio::spawn(async move { converse(stream, &connections).await });
        }
    });
}

async fn converse(stream: TcpStream, connections: &Cell<usize>) {
    connections.set(connections.get() + 1);
    let number = connections.get();
    let mut codec = ServerCodec::new(stream);
    while let Some(Ok(request)) = codec.next().await {
        let (parts, body) = request.into_parts();
        if codec.fill_payload().await.is_err() {
            return;
        }
        let echoed = match body {
            Payload::None => Payload::None,
            Payload::Fixed(_) => match body.bytes().await {
                Ok(content) => Payload::Fixed(FixedPayload::new(content)),
                Err(_) => return,
            },
            Payload::Stream(_) => match body.chunks().await {
                Ok(chunks) => payload(&Sent::InChunks(chunks.iter().map(|c| c.to_vec()).collect())),
                Err(_) => return,
            },
        };
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let response = Response::builder()
            .header(METHOD, parts.method.as_str())
            .header(TARGET, target)
            .header(FRAMING, framing_of(&parts.headers))
            .header(CONNECTION, number)
            .body(echoed)
            .expect("a response");
        // Whoever goes away is not answered.
        if codec.send_and_flush(response).await.is_err() {
            return;
        }
    }
}
