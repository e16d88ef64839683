// An RP2040 board (rp2040js) with the image of a UF2 file; its second argument is the port that is wired, `uart` or `usb`.
// Driven by lines on stdin:
//   rx HEX          bytes into the port
//   set PIN 0|1     a level on a pin
//   press PIN MS    low for so long by the board's own clock; says `released` some time after
//   pass MS         says `passed` when so much of the board's time has passed
//   read AT LEN     says `memory HEX`: bytes of memory
//   reset           as by the RUN pin: flash and memory stay
// and telling what it does by lines on stdout:
//   tx HEX          bytes from the port
//   usb             a USB host has configured it
//   released
//   boot            it runs from its reset vector
//
// The package has no boot ROM: what the firmware calls there is answered here, by breakpoints in its place. Board time
// follows the wall's and falls behind where this machine is too slow; it never runs ahead, or the pad would give its host
// up for silent.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { ConsoleLogger, LogLevel, RP2040, USBCDC } from 'rp2040js';

const FLASH = 0x10000000;
const RAM = 0x20000000;
const VECTORS = FLASH + 0x100;
const FLASH_SIZE = 2 << 20;
const FAMILY = 0xe48bff56;
const UNIQUE_ID = [0xe6, 0x60, 0x58, 0x38, 0x83, 0x2a, 0x5b, 0x2d];
const CYCLE_NS = 8;
const BYTE_NS = 1e9 / 11520;
const PINS = 30;
// Of a USB buffer: it is the controller's.
const AVAILABLE = 1 << 10;
const [UF2, PORT] = process.argv.slice(2);

const say = (line) => process.stdout.write(`${line}\n`);

function uf2(bytes) {
  const flash = new Uint8Array(FLASH_SIZE).fill(0xff);
  for (let at = 0; at < bytes.length; at += 512) {
    const word = (offset) => bytes.readUInt32LE(at + offset);
    if (word(0) !== 0x0a324655 || word(4) !== 0x9e5d5157 || word(508) !== 0x0ab16f30 || word(28) !== FAMILY) {
      throw new Error(`no RP2040 block at ${at}`);
    }
    flash.set(bytes.subarray(at + 32, at + 32 + word(16)), word(12) - FLASH);
  }
  return flash;
}

// Each function of the ROM that the firmware looks up: `bkpt`, `bx lr`.
function rom(chip) {
  const code = new DataView(chip.bootrom.buffer);
  const functions = new Map();
  const entry = (at, answer) => {
    const number = functions.size;
    functions.set(number, answer);
    code.setUint16(at, 0xbe00 | number, true);
    code.setUint16(at + 2, 0x4770, true);
    return at | 1;
  };
  const r = () => chip.core.registers;
  const flashAt = (address) => (address & 0xffffff) % FLASH_SIZE;
  const table = new Map(
    Object.entries({
      IF: () => {}, // connect_internal_flash
      EX: () => {}, // flash_exit_xip
      FC: () => {}, // flash_flush_cache
      CX: () => {}, // flash_enter_cmd_xip
      RE: () => chip.flash.fill(0xff, flashAt(r()[0]), flashAt(r()[0]) + r()[1]),
      RP: () => {
        const [to, from, count] = r();
        for (let i = 0; i < count; i++) chip.flash[flashAt(to) + i] &= chip.readUint8((from >>> 0) + i);
      },
      C4: () => {
        const [to, from, count] = r();
        for (let i = 0; i < count; i += 4) chip.writeUint32((to >>> 0) + i, chip.readUint32((from >>> 0) + i));
      },
      UB: () => say('bootloader'),
    }).map(([name, answer], i) => [name, entry(0x100 + 4 * i, answer)]),
  );
  code.setUint16(0x14, 0x80, true);
  code.setUint16(
    0x18,
    entry(0x50, () => {
      const name = String.fromCharCode(r()[1] & 0xff, (r()[1] >> 8) & 0xff);
      if (!table.has(name)) throw new Error(`the firmware asks for the ROM's ${name}`);
      r()[0] = table.get(name);
    }),
    true,
  );
  chip.onBreak = (number) => {
    const answer = functions.get(number);
    if (!answer || chip.core.PC > 0x4000) throw new Error(`breakpoint ${number} at ${chip.core.PC.toString(16)}`);
    answer();
  };
}

// A USB host that opens the serial port. The package takes a buffer that the firmware offers for filled at once, with nothing,
// and the firmware would read empty packets for ever: here an offer stands until there are bytes, as on a bus.
function usbPlugged(chip) {
  const usb = chip.usbCtrl;
  const host = new USBCDC(usb);
  const control = (endpoint) => 0x84 + 8 * endpoint;
  const available = (endpoint, is) => {
    const value = chip.usbDPRAMView.getUint32(control(endpoint), true) & ~AVAILABLE;
    chip.usbDPRAMView.setUint32(control(endpoint), is ? value | AVAILABLE : value, true);
  };
  let offered = 0;
  host.onSerialData = (bytes) => sending.push(...bytes);
  host.onDeviceConnected = () => say('usb');
  // "Ready" goes to the interface; the package says it to the device.
  host.cdcSetControlLineState = () => {
    usb.sendSetupPacket(Uint8Array.of(0x21, 0x22, 3, 0, 0, 0, 0, 0));
    host.initialized = true;
  };
  usb.onEndpointRead = (endpoint, size) => {
    available(endpoint, true);
    if (endpoint === host.outEndpoint) offered = size;
  };
  return () => {
    if (offered === 0 || incoming.length === 0) return;
    available(host.outEndpoint, false);
    usb.finishRead(host.outEndpoint, Uint8Array.from(incoming.splice(0, offered)));
    offered = 0;
  };
}

// No cable: as above.
function usbUnplugged(chip) {
  chip.usbCtrl.DPRAMUpdated = () => {};
}

// The flash chip's number, and what the package answers with all ones though the firmware waits for zero.
function flashInterface(chip) {
  const ssi = chip.peripherals[0x18000];
  const { readUint32, writeUint32 } = ssi;
  let sent = [];
  let taken = 0;
  ssi.writeUint32 = function (offset, value) {
    if (offset === 0x08) [sent, taken] = [[], 0];
    if (offset === 0x60) sent.push(value & 0xff);
    writeUint32.call(this, offset, value);
  };
  ssi.readUint32 = function (offset) {
    // "Read unique ID" has four dummy bytes.
    if (offset === 0x60 && sent[0] === 0x4b) return UNIQUE_ID[taken++ - 4] ?? 0;
    return readUint32.call(this, offset);
  };
  const read = chip.readUint32.bind(chip);
  chip.readUint32 = (address) => (address >>> 0 === 0x14000014 || address >>> 0 === 0x14000018 ? 0 : read(address));
}

const levels = new Array(PINS).fill(true);
let board;

function boot(flash, sram) {
  const chip = new RP2040();
  const { clock } = chip;
  chip.logger = new ConsoleLogger(LogLevel.Error);
  rom(chip);
  flashInterface(chip);
  chip.flash.set(flash);
  if (sram) chip.sram.set(sram);
  levels.forEach((level, pin) => chip.gpio[pin].setInputValue(level));
  chip.core.VTOR = VECTORS;
  chip.core.SP = chip.readUint32(VECTORS);
  chip.core.PC = chip.readUint32(VECTORS + 4) & ~1;
  let feed;
  if (PORT === 'usb') feed = usbPlugged(chip);
  else {
    usbUnplugged(chip);
    chip.uart[0].onByte = (byte) => sending.push(byte);
    feed = () => incoming.length > 0 && chip.uart[0].feedByte(incoming.shift());
  }
  const every = clock.createAlarm(() => {
    feed();
    every.schedule(BYTE_NS);
  });
  every.schedule(BYTE_NS);
  board = { chip, clock, began: performance.now() };
  say('boot');
}

const incoming = [];
let sending = [];

// As long as board time is behind the wall's, and no longer than a while.
function run() {
  const { chip, clock } = board;
  const { core } = chip;
  const slice = performance.now() + 10;
  while (performance.now() < slice) {
    const due = (performance.now() - board.began) * 1e6;
    if (clock.nanos >= due) break;
    const until = Math.min(due, clock.nanos + 200_000);
    while (clock.nanos < until) {
      if (!core.waiting) {
        clock.tick(core.executeInstruction() * CYCLE_NS);
        continue;
      }
      clock.tick(Math.max(1, Math.min(clock.nanosToNextAlarm, until - clock.nanos)));
      // The package wakes a sleeping core for every interrupt but the core's own tick.
      if (core.waiting && core.interruptsUpdated && core.checkForInterrupts()) core.waiting = false;
    }
  }
  // Time that was not made good for is forgotten.
  const behind = performance.now() - board.began - clock.nanos / 1e6;
  if (behind > 50) board.began += behind - 50;
  if (sending.length > 0) {
    say(`tx ${Buffer.from(sending).toString('hex')}`);
    sending = [];
  }
  if (behind > 0.5) setImmediate(run);
  else setTimeout(run, 1);
}

function set(pin, level) {
  levels[pin] = level;
  board.chip.gpio[pin].setInputValue(level);
}

const after = (ms, what) => board.clock.createAlarm(what).schedule(ms * 1e6);

createInterface({ input: process.stdin })
  .on('line', (line) => {
    const [verb, ...words] = line.split(' ');
    if (verb === 'rx') incoming.push(...Buffer.from(words[0], 'hex'));
    else if (verb === 'set') set(+words[0], words[1] === '1');
    else if (verb === 'press') {
      const [pin, ms] = words.map(Number);
      set(pin, false);
      after(ms, () => {
        set(pin, true);
        after(60, () => say('released'));
      });
    } else if (verb === 'pass') after(+words[0], () => say('passed'));
    else if (verb === 'read') {
      const [at, length] = words.map(Number);
      say(`memory ${Buffer.from(board.chip.sram.slice(at - RAM, at - RAM + length)).toString('hex')}`);
    } else if (verb === 'reset') boot(board.chip.flash.slice(), board.chip.sram.slice());
    else throw new Error(`not understood: ${line}`);
  })
  .on('close', () => process.exit(0));

boot(uf2(readFileSync(UF2)));
run();
