// Node's http with a constant answer of the size that a front's /bootstrap has.
import { createServer } from 'node:http'

const body = Buffer.from(process.env.ANSWER)

createServer((request, response) => {
  request.resume().on('end', () => {
    response.writeHead(200, { 'Content-Type': 'application/json; charset=utf-8', 'Content-Length': body.length })
    response.end(body)
  })
}).listen(Number(process.env.PORT), '127.0.0.1')
