// What the device says and hears: docs/protocol.md, sections 2 to 4.
import { createHash, createPrivateKey, createPublicKey, randomBytes, sign, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";

export const random = () => randomBytes(8).toString("hex");

/** The PEM blocks of a file that have this label. */
export function pems(path, label) {
  return readFileSync(path, "utf8").match(new RegExp(`-----BEGIN ${label}-[^]+?-END ${label}-----`, "g")) ?? [];
}

/** What is signed. */
export function encode(kind, payload) {
  return Buffer.concat([Buffer.from(`DSSEv1 ${kind.length} ${kind} ${payload.length} `), payload]);
}

export function keyId(publicKey) {
  return createHash("sha256").update(publicKey.export({ type: "spki", format: "der" })).digest("hex");
}

/** The digest follows from the key; ECDSA signatures are DER, which is what node:crypto makes. */
export function digestOf(key) {
  if (key.asymmetricKeyType === "ed25519") return null;
  return key.asymmetricKeyDetails.namedCurve === "secp384r1" ? "sha384" : "sha256";
}

export class Identity {
  constructor(options) {
    this.key = createPrivateKey(readFileSync(options.key));
    this.keyId = keyId(createPublicKey(this.key));
    const chain = pems(options.certificate, "CERTIFICATE").map((pem) => new X509Certificate(pem));
    this.chain = chain.map((certificate) => certificate.raw.toString("base64"));
    const name = chain[0].subject.split("\n").find((line) => line.startsWith("CN=")).slice(3);
    this.base = `${options.prefix}/${name}`;
    this.audience = options.audience || options.host;
    this.boot = random();
  }
}

/** One connection's numbers: `conn` is new at every CONNECT, `seq` counts its messages. */
export class Counted {
  constructor(identity) {
    Object.assign(this, { identity, conn: random(), seq: 0 });
  }

  message(verb, fields, seq = ++this.seq) {
    const { base, audience, boot, key, keyId: keyid } = this.identity;
    const kind = `application/vnd.fleetgate.${verb}.v1+json`;
    const common = { v: 1, aud: audience, topic: `${base}/${verb}`, conn: this.conn, boot, seq };
    const payload = Buffer.from(JSON.stringify({ ...common, ...fields }));
    const sig = sign(digestOf(key), encode(kind, payload), key).toString("base64");
    return JSON.stringify({ payloadType: kind, payload: payload.toString("base64"), signatures: [{ keyid, sig }] });
  }
}
