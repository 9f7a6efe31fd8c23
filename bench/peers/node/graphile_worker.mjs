// graphile-worker with its batching on: the local queue, and completions that share a statement.
import { Logger, makeWorkerUtils, run } from 'graphile-worker'
import { play, url } from './frame.mjs'

const logger = new Logger(() => (level, message) => { if (level === 'error') console.error(message) })
const open = () => makeWorkerUtils({ connectionString: url, logger })

await play({
  packages: ['graphile-worker', 'pg'],

  async prepare() {
    const utils = await open()
    await utils.migrate()
    await utils.release()
  },

  async produce() {
    const utils = await open()
    const spec = payload =>
      ({ identifier: 'noop', payload, ...(payload.due && { runAt: new Date(payload.due) }) })
    return {
      batch: 500,
      lanes: 4,
      add: payloads => utils.addJobs(payloads.map(spec)),
      addOne: payload => utils.addJob('noop', payload),
      close: () => utils.release(),
    }
  },

  async work(note) {
    const pollMs = process.argv[3]
    const runner = await run({
      preset: {
        worker: {
          connectionString: url,
          logger,
          concurrentJobs: 24,
          localQueue: { size: 5000, refetchDelay: { durationMs: 10 } },
          completeJobBatchDelay: 0,
          failJobBatchDelay: 0,
          ...(pollMs && { pollInterval: Number(pollMs) }),
        },
      },
      noHandleSignals: true,
      taskList: { noop: note },
    })
    return () => runner.stop()
  },
})
