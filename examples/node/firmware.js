// What the device does with offers: docs/protocol.md, sections 13 to 16.
import { createHash, createPublicKey, verify as verifySignature } from "node:crypto";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { rootCertificates } from "node:tls";
import { digestOf, encode, keyId, pems } from "./wire.js";

const KIND = "application/vnd.fleetgate.bundle.v1+json";
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/; // never a path
const FAILED = ["download_failed", "url_refused", "digest_mismatch", "install_failed"]; // other reasons: rejected

/** The offer was not installed; the message is the reason, a word of section 15. */
class Refused extends Error {}

function isFor({ model, revisions }, hardware) {
  return model === hardware.model && (!revisions?.length || revisions.includes(hardware.revision));
}

/** The steps of section 13, in its order; returns the statement. */
export function verify(envelope, { signers, product, hardware, runningSeq, highestSeq }) {
  let statement;
  const require = (passed, reason) => {
    if (!passed) throw new Refused(reason);
  };
  try {
    const [{ keyid, sig }] = envelope.signatures;
    const payload = Buffer.from(envelope.payload, "base64");
    const signer = signers.get(keyid);
    const signed = (signature) => verifySignature(digestOf(signer), encode(KIND, payload), signer, signature);
    require(envelope.payloadType === KIND && signer && signed(Buffer.from(sig, "base64")), "statement_invalid");
    statement = JSON.parse(payload);
    const { v, version, bundle_seq: seq, artifacts } = statement;
    const names = new Set(artifacts.map(({ name }) => name));
    const sizes = artifacts.map(({ size }) => size);
    require(v === 1 && typeof version === "string" && Number.isSafeInteger(seq), "statement_invalid");
    require(artifacts.length >= 1 && artifacts.length <= 8 && names.size === artifacts.length, "statement_invalid");
    require([...names].every((name) => NAME.test(name)), "statement_invalid");
    require(sizes.every((size) => Number.isSafeInteger(size) && size > 0), "statement_invalid");
  } catch (error) {
    throw error instanceof Refused ? error : new Refused("statement_invalid");
  }
  require(statement.product === product, "wrong_product");
  require(statement.bundle_seq > highestSeq, "not_above_installed");
  require(!statement.hardware?.length || statement.hardware.some((one) => isFor(one, hardware)), "wrong_hardware");
  require((statement.floor ?? 0) <= runningSeq, "below_floor");
  return statement;
}

/** Resolves to the answer's status, its headers, and at most size + 1 bytes of it. */
function get(url, size, ca) {
  return new Promise((resolve, reject) => {
    const client = url.startsWith("https:") ? https : http;
    const request = client.get(url, { ca: [...rootCertificates, ca], timeout: 60_000 }, (response) => {
      const parts = [];
      let length = 0;
      response.on("data", (part) => {
        parts.push(part);
        length += part.length;
        if (length > size) response.destroy();
      });
      response.on("error", reject);
      const { statusCode: status, headers } = response;
      response.on("close", () => resolve({ status, headers, data: Buffer.concat(parts) }));
    });
    request.on("timeout", () => request.destroy(new Error("nothing came for a minute")));
    request.on("error", reject);
  });
}

async function download(url, size, ca) {
  if (!/^https?:\/\//.test(url)) throw new Refused("url_refused");
  for (let pause of [5, 20, 60]) {
    try {
      const { status, headers, data } = await get(url, size, ca);
      if (status === 200 && data.length >= size) return data;
      if ([403, 404, 410].includes(status)) throw new Refused("url_refused");
      pause = Math.min(3600, Number(headers["retry-after"] ?? pause));
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    await sleep(1000 * pause * (1 + Math.random() / 2));
  }
  throw new Refused("download_failed");
}

/** The directory `state` stands for the slot of a real device, and for memory that outlives a restart. */
export class Updates {
  constructor(options, ended) {
    this.state = options.state;
    this.ended = ended;
    this.ca = readFileSync(options.ca, "utf8");
    const signers = pems(options.signers, "PUBLIC KEY").map((pem) => createPublicKey(pem));
    this.signers = new Map(signers.map((key) => [keyId(key), key]));
    this.hardware = { model: options.model, ...(options.revision && { revision: options.revision }) };
    mkdirSync(join(this.state, "images"), { recursive: true });
    this.kept = { highest: 0, revision: 0, done: null, last_update: null, ...this.load("kept.json", {}) };
    this.running = this.load("version.json", { version: options.version, bundle_seq: 0 });
    this.keep({ highest: Math.max(this.kept.highest, this.running.bundle_seq) });
  }

  load(name, otherwise) {
    const path = join(this.state, name);
    return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : otherwise;
  }

  /** Whole or not at all, also when the power fails. */
  save(name, data) {
    const path = join(this.state, name);
    const file = openSync(`${path}.new`, "w");
    writeSync(file, data);
    fsyncSync(file);
    closeSync(file);
    renameSync(`${path}.new`, path);
  }

  keep(changes) {
    Object.assign(this.kept, changes);
    this.save("kept.json", JSON.stringify(this.kept));
  }

  forHello() {
    const { hardware, running: firmware, kept } = this;
    return { hardware, firmware, ...(kept.last_update && { last_update: kept.last_update }) };
  }

  welcome({ product, offer }) {
    this.product = product;
    this.keep({ last_update: null }); // it has arrived
    if (offer) this.offer(offer);
  }

  offer(offer) {
    if (!this.product || !(offer.revision >= this.kept.revision)) return;
    this.keep({ revision: offer.revision });
    if (this.updating) {
      // Cancelled, or a newer offer: the update stops before it writes.
      if ((this.updating === offer.offer_id) === Boolean(offer.cancelled)) this.keep({ done: this.updating });
    } else if (!offer.cancelled && offer.offer_id !== this.kept.done) {
      this.updating = offer.offer_id;
      this.update(offer);
    }
  }

  async update(offer) {
    const { offer_id: id } = offer;
    let reason = null;
    try {
      await this.install(offer);
    } catch (error) {
      reason = error instanceof Refused ? error.message : "install_failed";
    }
    this.updating = null;
    if (reason === null) {
      this.keep({ done: id, last_update: { offer_id: id, result: "succeeded" } });
    } else if (reason === "url_refused" && this.retried !== id) {
      this.retried = id; // the hello that comes now brings a fresh address
    } else if (this.kept.done !== id) {
      const result = FAILED.includes(reason) ? "failed" : "rejected";
      this.keep({ done: id, last_update: { offer_id: id, result, reason } });
    }
    this.ended(reason);
  }

  async install(offer) {
    const statement = verify(offer.statement, {
      signers: this.signers,
      product: this.product,
      hardware: this.hardware,
      runningSeq: this.running.bundle_seq,
      highestSeq: this.kept.highest,
    });
    const urls = new Map(offer.artifacts.map(({ name, url }) => [name, url]));
    const images = [];
    // Name, size and digest are the signed ones, never the offer's.
    for (const { name, size, sha256 } of statement.artifacts) {
      const data = await download(urls.get(name), size, this.ca);
      const digest = createHash("sha256").update(data).digest("hex");
      if (data.length !== size || digest !== sha256) throw new Refused("digest_mismatch");
      images.push([name, data]);
    }
    if (this.kept.done === offer.offer_id) throw new Refused("called_off");
    for (const [name, data] of images) this.save(join("images", name), data);
    const { version, bundle_seq } = statement;
    this.save("version.json", JSON.stringify({ version, bundle_seq })); // the switch to the new image
  }
}
