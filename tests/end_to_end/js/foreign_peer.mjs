// A js-libp2p peer made from p2p/WIRE.md.
//
//     foreign_peer.mjs ADDRESS CHAIN_ID MESSAGE
//
// It is admitted, asks for blocks, a light block and a proof of its own account, hears one message of the topic `txs`,
// says MESSAGE and waits until it is pinged. It prints what it learnt, a JSON object.

import { createHash } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { Decoder, Encoder } from '@msgpack/msgpack'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const [address, chainHex, messageHex] = process.argv.slice(2)
const chainId = Buffer.from(chainHex, 'hex')
const sha256 = (bytes) => createHash('sha256').update(bytes).digest()
const hex = (bytes) => Buffer.from(bytes).toString('hex')

// Integers are u63: read as BigInt, and written in their shortest form.
const encoder = new Encoder({ useBigInt64: true })
const decoder = new Decoder({ useBigInt64: true })
const shortest = (value) => {
  if (Array.isArray(value)) return value.map(shortest)
  return typeof value === 'bigint' && value <= 0xffffffffn ? Number(value) : value
}
const pack = (...fields) => encoder.encode(fields.map(shortest))
const framed = (body) => {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(body.length)
  return Buffer.concat([length, body])
}

async function readFrame (stream) {
  let raw = Buffer.alloc(0)
  for await (const part of stream) {
    raw = Buffer.concat([raw, Buffer.from(part.subarray())])
    if (raw.length >= 4 && raw.length >= 4 + raw.readUInt32BE(0)) break
  }
  return raw.subarray(4, 4 + raw.readUInt32BE(0))
}

const privateKey = await generateKeyPairFromSeed('Ed25519', sha256('a peer in another language'))
const node = await createLibp2p({
  privateKey,
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({
      globalSignaturePolicy: 'StrictSign',
      msgIdFn: (message) => sha256(message.data).subarray(0, 20),
      allowPublishToZeroTopicPeers: true
    })
  }
})
const end = multiaddr(address)

async function status () {
  const nowMs = BigInt(Date.now())
  const body = [1, privateKey.publicKey.raw, nowMs, [], 0, new Uint8Array(0)]
  const signed = Buffer.concat([Buffer.from('olnode/1/address\0'), chainId, pack(...body)])
  const record = [body, await privateKey.sign(signed)]
  return pack(1, chainId, Buffer.from('js/1'), 0, 0, new Uint8Array(0), 1, 0, nowMs, record)
}

let wasPinged
const pinged = new Promise((resolve) => { wasPinged = resolve })

await node.handle('/olnode/ping/1', async (stream) => {
  stream.send(framed(pack(0, 0, await readFrame(stream))))
  await stream.close()
  wasPinged()
})
await node.handle('/olnode/status/1', async (stream) => {
  await readFrame(stream)
  stream.send(framed(pack(0, 0, await status())))
  await stream.close()
})

async function ask (protocol, body) {
  const stream = await node.dialProtocol(end, `/olnode/${protocol}/1`)
  stream.send(framed(body))
  const [code, , answer] = decoder.decode(await readFrame(stream))
  await stream.close()
  return [Number(code), answer.length > 0 ? decoder.decode(answer) : null]
}

async function talk () {
  const topic = `/olnode/txs/1/${hex(chainId.subarray(0, 8))}`
  const { pubsub } = node.services
  const heard = new Promise((resolve) => {
    pubsub.addEventListener('message', ({ detail }) => {
      if (detail.topic === topic) resolve(detail)
    })
  })
  pubsub.subscribe(topic)
  await node.dial(end)
  const [early] = await ask('blocks', pack(0, 1, 1))
  const [code, told] = await ask('status', await status())
  const [, blocks] = await ask('blocks', pack(0, 1, 64))
  const [, light] = await ask('light', pack(0, 0))
  const account = Buffer.concat([Buffer.from([1]), privateKey.publicKey.raw]) // ours: it has none
  const [, proofs] = await ask('light', pack(1, told[4], [account]))
  const [malformed] = await ask('blocks', Buffer.concat([pack(0, 1, 1), Buffer.alloc(1)]))
  const [, pong] = await ask('ping', pack(Buffer.from('12345678')))
  const rttMs = await node.services.ping.ping(end)
  const came = await heard
  await pubsub.publish(topic, Buffer.from(messageHex, 'hex'))
  await pinged
  return {
    before_status: early,
    status: code,
    height: Number(told[4]),
    blocks: blocks.map(([block]) => hex(sha256(block))),
    header: hex(light[0]),
    proof: hex(proofs[0]),
    malformed,
    pong: Buffer.from(pong[0]).toString(),
    ping_ms: rttMs,
    heard: hex(came.data),
    author: hex(came.from.publicKey.raw)
  }
}

const late = setTimeout(() => { console.error('too slow'); process.exit(1) }, 60_000)
console.log(JSON.stringify(await talk()))
clearTimeout(late)
await node.stop()
process.exit(0)
