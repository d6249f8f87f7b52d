// A level-2 device of Fleetgate, written from docs/protocol.md alone: says hello, stays, takes firmware.
// node device.js --host … --ca … --certificate … --key … --signers … --state …   (all PEM; signers: public keys)
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import mqtt from "mqtt";
import { Updates } from "./firmware.js";
import { Counted, Identity, random } from "./wire.js";

const IMAGE = { model: "pump", revision: "", version: "1.0.0" }; // what the factory made, and put on it
const DEFAULTS = { port: "8883", mqtt: "5", audience: "", prefix: "fg/v1", ...IMAGE };
const NAMES = ["host", "ca", "certificate", "key", "signers", "state", ...Object.keys(DEFAULTS)];
const { values } = parseArgs({ options: Object.fromEntries(NAMES.map((name) => [name, { type: "string" }])) });
const options = { ...DEFAULTS, ...values };
for (const name of NAMES) if (options[name] === undefined) throw new Error(`--${name} is missing`);

/** From start to restart. The program itself is the image, so a restart is a new Device. */
class Device {
  constructor() {
    this.identity = new Identity(options);
    this.updates = new Updates(options, (reason) => this.onEnded(reason));
    Object.assign(this, { tries: 0, withChain: true, gone: false });
    this.connect();
  }

  /** Section 11. The random part keeps a thousand devices apart. */
  pause(next) {
    clearTimeout(this.timer);
    this.tries = Math.min(this.tries + 1, 7);
    this.next = next;
    this.due = Date.now() + 1000 * Math.random() * Math.min(600, 5 * 2 ** this.tries);
    this.timer = setTimeout(next, this.due - Date.now());
  }

  connect() {
    const { base } = this.identity;
    const counted = new Counted(this.identity);
    const farewell = counted.message("presence", { state: "offline" }, 0);
    const client = mqtt.connect({
      protocol: "mqtts",
      host: options.host,
      port: Number(options.port),
      ca: readFileSync(options.ca),
      cert: readFileSync(options.certificate),
      key: readFileSync(options.key),
      protocolVersion: options.mqtt === "5" ? 5 : 4,
      clientId: "device", // the broker puts the certificate's CN in its place
      clean: true,
      reconnectPeriod: 0, // a new connection has a new `conn` and so a new will
      will: { topic: `${base}/presence`, payload: farewell, qos: 1, retain: false },
    });
    Object.assign(this, { client, counted, nonce: null, welcomed: false });
    client.on("connect", () => client.subscribe([`${base}/reply`, `${base}/offer`], { qos: 1 }, () => this.hello()));
    client.on("message", (topic, payload) => this.onMessage(topic.split("/").pop(), payload));
    client.on("error", (error) => console.log(String(error)));
    client.on("close", () => this.onClose());
  }

  onClose() {
    Object.assign(this, { nonce: null, welcomed: false });
    if (!this.gone) this.pause(() => this.connect());
  }

  send(verb, fields) {
    this.client.publish(`${this.identity.base}/${verb}`, this.counted.message(verb, fields), { qos: 1 });
  }

  hello(proof) {
    this.nonce = random();
    this.welcomed = false;
    this.challenges = proof ? this.challenges + 1 : 0;
    const chain = this.withChain ? { chain: this.identity.chain } : {};
    this.send("hello", { nonce: this.nonce, ...(proof ?? { ts: Date.now() }), ...chain, ...this.updates.forHello() });
    this.pause(() => this.hello());
  }

  onMessage(verb, payload) {
    try {
      const body = JSON.parse(payload);
      if (verb === "offer") this.updates.offer(body);
      if (verb === "reply" && this.nonce && [this.nonce, null].includes(body.for)) this.onReply(body);
    } catch (error) {
      console.log(`${verb} ignored: ${error}`);
    }
  }

  onReply(reply) {
    console.log(reply.result, reply.reason ?? "");
    if (reply.result === "challenge" && this.challenges < 3) {
      this.withChain ||= reply.reason === "chain_required";
      this.hello({ challenge: reply.challenge });
    } else if (reply.result === "welcome") {
      Object.assign(this, { nonce: null, welcomed: true, tries: 0, withChain: false });
      this.beat(1000 * Math.max(10, reply.heartbeat_seconds), Date.now());
      this.updates.welcome(reply);
    } else {
      clearTimeout(this.timer);
      this.due += 1000 * Math.min(reply.retry_after_seconds ?? 0, 3600);
      this.timer = setTimeout(this.next, this.due - Date.now());
    }
  }

  /** Reports once in the interval that begins at `start`, at a random point of it. */
  beat(every, start) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.send("presence", { state: "online" });
      this.beat(every, start + every);
    }, start + every * Math.random() - Date.now());
  }

  /** The goodbye of section 8, then a clean DISCONNECT. */
  leave(state, then) {
    this.gone = true;
    clearTimeout(this.timer);
    if (!this.client.connected) return then();
    const goodbye = this.counted.message("presence", { state });
    this.client.publish(`${this.identity.base}/presence`, goodbye, { qos: 1 }, () => this.client.end(false, then));
  }

  onEnded(reason) {
    console.log("update:", reason ?? "installed");
    if (this.gone) return;
    if (reason === null) this.leave("rebooting", () => (device = new Device()));
    else if (this.nonce || this.welcomed) this.hello();
  }
}

let device = new Device();
process.on("SIGTERM", () => device.leave("offline", () => process.exit(0)));
